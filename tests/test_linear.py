"""`linear` on every instruction set: against float64 numpy; the same bits for any batch and threads."""

import numpy as np
import pytest
from scipy.special import logsumexp

from dice import InputError, _core

NAMES = ("energy", "msp", "maxlogit", "label", "logits")
NATIVE = ("scalar", "avx2", "avx512", "amx").index(_core.isa_native())
ISAS = [name for rank, name in enumerate(("scalar", "avx2", "avx512")) if rank <= NATIVE]
# one, tile - 1, tile, tile + 1 of every tile: 16 classes, 64, panels of 128; features in blocks of 256
SHAPES = [
    (1, 1),
    (2, 3),
    (10, 342),
    (15, 7),
    (16, 8),
    (17, 255),
    (63, 256),
    (64, 257),
    (65, 16),
    (127, 300),
    (129, 513),
]


def layer(classes, features, n, density=None, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, features)).astype(np.float32)
    bias = rng.standard_normal(classes).astype(np.float32)
    h = np.maximum(rng.standard_normal((n, features)), 0).astype(np.float32)
    keep = None if density is None else (rng.random((classes, features)) < density).astype(np.uint8)
    return weight, bias, keep, h


def truth(weight, bias, keep, h, clip):
    z = np.minimum(h, clip).astype(float) @ (weight.astype(float) * (1 if keep is None else keep)).T + bias
    return z


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [None, 0, 0.02, 0.3, 0.95, 1])
def test_equals_numpy(isa, shape, density):
    weight, bias, keep, h = layer(*shape, 37, density)
    for clip in (np.inf, 0.7, -0.2):
        energy, msp, maxlogit, label, logits = _core.Linear(weight, bias, keep, isa=isa).forward(
            h, clip, *NAMES
        )
        z = truth(weight, bias, keep, h, clip)
        size = 2e-7 * np.sqrt(shape[1]) * (1 + np.abs(z).max())
        np.testing.assert_allclose(logits, z, rtol=0, atol=size)
        np.testing.assert_allclose(energy, logsumexp(z, axis=1), rtol=0, atol=size)
        np.testing.assert_allclose(msp, np.exp(z.max(1) - logsumexp(z, axis=1)), rtol=2 * size, atol=0)
        np.testing.assert_allclose(maxlogit, z.max(1), rtol=0, atol=size)
        assert np.array_equal(label, logits.argmax(1))
        # the reductions themselves, from the logits that were used
        np.testing.assert_allclose(
            energy, logsumexp(logits.astype(float), axis=1), rtol=0, atol=size if isa == "scalar" else 1e-11
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("density", [None, 0.1, 0.5])
def test_same_bits_for_any_batch_and_threads(isa, density):
    weight, bias, keep, h = layer(150, 600, 131, density)
    linear = _core.Linear(weight, bias, keep, isa=isa)
    want = linear.forward(h, 1.0, *NAMES)
    try:
        for threads in (1, 2):
            _core.threads_set(threads)
            for batch in (1, 7, 16, 17, 33, 64):
                parts = [linear.forward(h[i : i + batch], 1.0, *NAMES) for i in range(0, len(h), batch)]
                for name, whole, *rest in zip(NAMES, want, *parts, strict=True):
                    assert np.array_equal(np.concatenate(rest), whole), (name, threads, batch)
    finally:
        _core.threads_set(0)
    for name, whole in zip(NAMES, want, strict=True):
        assert np.array_equal(linear.forward(h, 1.0, name)[0], whole)


@pytest.mark.skipif(len(ISAS) < 3, reason="needs two vector instruction sets")
def test_layouts_and_sets_agree_to_the_bit():
    """Dense with zeros, sparse, AVX2 and AVX-512 all sum in the same order."""
    weight, bias, keep, h = layer(150, 600, 20, 0.3)
    masked = weight * keep
    results = [
        _core.Linear(w, bias, k, isa=isa).forward(h, np.inf, *NAMES)
        for isa in ISAS[1:]
        for w, k in ((weight, keep), (masked, None))
    ]
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_layout_follows_density():
    weight, bias, keep, _ = layer(100, 500, 1, 0.1)
    if len(ISAS) > 1:
        kind, size = _core.Linear(weight, bias, keep).info()
        assert kind == "sparse" and size < weight.nbytes / 4
        assert _core.Linear(weight, bias, layer(100, 500, 1, 0.4)[2]).info()[0] == "both"
    assert _core.Linear(weight, bias).info()[0] == "dense"
    assert _core.Linear(weight, bias, np.ones_like(keep)).info()[0] == "dense"


@pytest.mark.parametrize("isa", ISAS)
def test_far_apart_and_equal_logits(isa):
    linear = _core.Linear(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), isa=isa)
    h = np.float32([[3e38, -3e38, 0], [-800, 0, -1e4], [5, 5, 5], [0, 2, 2]])
    energy, msp, maxlogit, label = linear.forward(h, np.inf, "energy", "msp", "maxlogit", "label")
    np.testing.assert_allclose(energy, logsumexp(h.astype(float), axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(msp, [1, 1, 1 / 3, 1 / (2 + np.exp(-2))], rtol=1e-11)
    assert label.tolist() == [0, 1, 0, 1] and maxlogit.tolist() == [h[0].max(), 0, 5, 2]


W, B, KEEP, H = layer(4, 6, 5, 0.5)


@pytest.mark.parametrize(
    "args, word",
    [
        ((W[0], B), "W: got 1 dim"),
        ((W, B[:2]), "b: got 2"),
        ((W, B, KEEP[:, :3]), "keep: got 3 along axis 1"),
        ((W * np.nan, B), "W: holds NaN"),
        ((W[:, :0], B), "W: got shape"),
        ((W, B, None, "tpu"), "tpu"),
        ((W, B, None, "cpu", "sse"), "sse"),
    ],
)
def test_refuses_to_make(args, word):
    with pytest.raises(InputError, match=word):
        _core.Linear(*args)


@pytest.mark.parametrize(
    "args, word",
    [
        ((H[:, :2], 1, "energy"), "h: got 2 features"),
        ((H[0], 1, "energy"), "h: got 1 dim"),
        ((H * np.nan, 1, "energy"), "h: holds"),
        ((H, np.nan, "energy"), "clip"),
        ((H, -np.inf, "energy"), "clip"),
        ((H, 1, "odin"), "score"),
        ((H, 1, "msp", "msp"), "twice"),
    ],
)
def test_refuses_to_run(args, word):
    with pytest.raises(InputError, match=word):
        _core.Linear(W, B).forward(*args)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 9, 40])
def test_reductions_of_logits_that_are_there(isa, n):
    weight, bias, _, h = layer(17, 33, n)
    linear = _core.Linear(weight, bias, isa=isa)
    *wanted, z = linear.forward(h, np.inf, *NAMES)
    assert linear.reduces == (isa != "scalar")
    if not linear.reduces:
        with pytest.raises(InputError, match="reduce: not offered on reference"):
            linear.reduce(z, "energy")
        return
    for got, want in zip(linear.reduce(z, *NAMES[:-1]), wanted, strict=True):
        assert got.tobytes() == want.tobytes()
    with pytest.raises(InputError, match="z: got 16 classes, W has 17"):
        linear.reduce(z[:, :16], "msp")
    with pytest.raises(InputError, match="logits are what reduce is given"):
        linear.reduce(z, "logits")
