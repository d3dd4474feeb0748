"""Banks of training features: views of the given array if possible, else copies; the neighbours found."""

import pickle

import numpy as np
import pytest
import score_formulas as formulas
from score_cases import fitted, random_case

from dice.detectors import KNN, Relation
from dice.detectors.bank import joined


@pytest.mark.parametrize("mapped", [False, True])
def test_blocks_of_one_array_are_a_bank_without_a_copy(mapped, tmp_path):
    case = random_case()
    np.save(tmp_path / "h.npy", case.train32)
    h = np.load(tmp_path / "h.npy", mmap_mode="r") if mapped else case.train32
    for name, det in {"knn": KNN(), "relation": Relation(*case.layer32)}.items():
        for first in range(0, len(h), 100):
            det.partial_fit(h[first : first + 100])
        rows = det._state.columns()[0]
        assert np.shares_memory(rows, h) and np.array_equal(rows, h)
        want = fitted(name, case).score_samples(case.test32)
        assert np.array_equal(det.score_samples(case.test32), want)
        det.partial_fit(case.train32[:3])  # not the next rows: a copy
        assert np.array_equal(det._state.columns()[0], np.concatenate([h, case.train32[:3]]))
        back = pickle.loads(pickle.dumps(det))
        assert np.array_equal(back.score_samples(case.test32), det.score_samples(case.test32))


def test_parts_that_do_not_follow_each_other_are_copied():
    a = np.arange(24, dtype=np.float32).reshape(12, 2)
    other = np.zeros((2, 2), np.float32)
    for parts in (
        [a[:4], a[5:9]],
        [a[4:8], a[:4]],
        [a[:4], other],
        [a[:0], a[:4]],
        [a[:2], a[:2]],
        [a.T[:1].T.copy(), a[:2, :1].copy()],
    ):
        got = joined(parts)
        assert np.array_equal(got, np.concatenate(parts)) and not np.shares_memory(got, a)
    for parts in ([a[:4], a[4:5], a[5:9]], [a[3:4], a[4:4], a[4:12]]):
        got = joined(parts)
        assert np.array_equal(got, np.concatenate(parts)) and np.shares_memory(got, a)


@pytest.mark.parametrize("k", [1, 2, 50, 1500, 2999, 3000, 9999])
def test_neighbours_in_a_large_bank(k, tmp_path):
    rng = np.random.default_rng(0)
    bank = (rng.standard_normal((3000, 16)) ** 2).astype(np.float32)
    bank[100:700] = bank[100]  # equals
    bank[700:1200] = bank[100] * (1 + 1e-6 * rng.standard_normal((500, 1))).astype(
        np.float32
    )  # the same direction, nearly
    bank[5] = 0
    h = np.concatenate(
        [
            bank[:200:20],
            (rng.standard_normal((20, 16)) ** 2).astype(np.float32),
            np.zeros((1, 16), np.float32),
        ]
    )
    det = KNN(k).fit(bank)
    want = formulas.knn(h.astype(float), bank.astype(float), min(k, 3000))
    np.testing.assert_allclose(det.score_samples(h), want, rtol=1e-6, atol=1e-12)
    np.save(tmp_path / "bank.npy", bank)
    mapped = KNN(k).fit(np.load(tmp_path / "bank.npy", mmap_mode="r"))
    assert np.array_equal(mapped.score_samples(h), det.score_samples(h))
    assert mapped._state.columns()[0].base is not None  # a view of the file, not a copy
