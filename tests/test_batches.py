"""Batches of an image set: order, threads, interruption, and images that cannot be read."""

import os
import threading
import time

import numpy as np
import pytest
from image_cases import CIFAR, collect, draw

from dice.errors import InputError
from dice.images.datasets import open_set


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A flat set of 100 images; image i has the value i."""
    folder = tmp_path_factory.mktemp("numbered")
    for i in range(100):
        draw(folder / f"{i:03d}.png", i, (32 + i % 3, 32))
    return folder


@pytest.mark.parametrize("batch_size", [1, 7, 50, 100, 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 33])
def test_batches_keep_the_order(numbered, batch_size, threads, start):
    images = open_set(f"own={numbered}", numbered)
    batches = list(images.batches(CIFAR, batch_size, threads=threads, start=start))
    assert [len(b[0]) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    indices = np.concatenate([b[0] for b in batches])
    pixels = np.concatenate([b[1] for b in batches])
    assert indices.tolist() == list(range(start, 100))
    np.testing.assert_array_equal(pixels, np.broadcast_to(indices[:, None, None, None], pixels.shape))


def test_start_at_the_end_and_batch_of_nothing(numbered):
    images = open_set(f"own={numbered}", numbered)
    assert list(images.batches(CIFAR, 10, start=100)) == []
    with pytest.raises(InputError, match="batch size 0"):
        next(images.batches(CIFAR, 0))


def decoding_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("dice-decode")]


def test_stopping_early_leaves_no_thread(numbered):
    images = open_set(f"own={numbered}", numbered)
    for batch_size in (1, 10):
        batches = images.batches(CIFAR, batch_size, threads=3)
        next(batches)
        assert decoding_threads()
        batches.close()
        assert not decoding_threads()


def test_work_ahead_is_bounded(numbered):
    images = open_set(f"own={numbered}", numbered)
    read, count = images.read, []
    images.read = lambda i: count.append(i) or read(i)
    batches = images.batches(CIFAR, 16, threads=1)
    next(batches)
    time.sleep(0.3)  # time in which the decoder would run ahead without a limit
    assert len(count) <= 16 * 3
    assert sum(len(b[0]) for b in batches) == 84


def test_interrupt_in_the_consumer_ends_cleanly(numbered):
    images = open_set(f"own={numbered}", numbered)
    with pytest.raises(KeyboardInterrupt):
        for _ in images.batches(CIFAR, 4, threads=2):
            raise KeyboardInterrupt
    assert not decoding_threads()


def test_other_errors_of_a_thread_reach_the_caller(numbered):
    images = open_set(f"own={numbered}", numbered)
    with pytest.raises(ZeroDivisionError):
        collect(images, type("Broken", (), {"size": 32, "__call__": lambda self, image: 1 // 0})(), 10)
    assert not decoding_threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_batches_work_in_a_forked_child(numbered):
    images = open_set(f"own={numbered}", numbered)
    collect(images, CIFAR, 10)
    child = os.fork()
    if child == 0:
        os._exit(0 if collect(images, CIFAR, 10)[0].tolist() == list(range(100)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def spoil(tmp_path, count, bad):
    for i in range(count):
        draw(tmp_path / f"{i:02d}.png", i)
    for i in bad:
        path = tmp_path / f"{i:02d}.png"
        path.write_bytes(path.read_bytes()[:40])
    return open_set(f"own={tmp_path}", tmp_path)


def test_bad_image_is_refused_after_what_came_before(tmp_path):
    images = spoil(tmp_path, 30, [17])
    seen = []
    with pytest.raises(InputError, match="17.png.*skip-bad"):
        for indices, _ in images.batches(CIFAR, 5):
            seen += indices.tolist()
    assert seen == list(range(15)) and images.bad == []


def test_bad_images_are_skipped_and_named(tmp_path):
    bad = [0, 7, 8, 9, 29]
    images = spoil(tmp_path, 30, bad)
    for _ in range(2):  # a second pass counts no image again
        indices, pixels = collect(images, CIFAR, 3, skip_bad=True)
        assert indices.tolist() == [i for i in range(30) if i not in bad]
        assert pixels[:, 0, 0, 0].tolist() == indices.tolist()
        assert len(images.bad) == 5
    assert "00.png" in images.bad[0] and "29.png" in images.bad[-1]


def test_image_that_vanishes_is_bad(tmp_path):
    images = spoil(tmp_path, 3, [])
    (tmp_path / "01.png").unlink()
    assert collect(images, CIFAR, 3, skip_bad=True)[0].tolist() == [0, 2]
    assert "01.png" in images.bad[0]
