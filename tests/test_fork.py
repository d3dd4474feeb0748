"""The child of a fork works, whatever another thread of the parent was doing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_densenet

CHILDREN, SECONDS = 20, 10  # a child that has not answered by then hangs

# argv: checkpoint, kind. Threads of the parent are in `use` all the time while children are forked.
SCRIPT = f"""
import os, signal, sys, threading, time
import numpy as np
import dice
from dice import _core
from dice.detectors import KNN, Mahalanobis

checkpoint, kind = sys.argv[1:]
rng = np.random.default_rng(0)
h = np.abs(rng.standard_normal((3000, 64))).astype(np.float32)

def network():
    net, images = dice.load_backbone("densenet", checkpoint), rng.integers(0, 256, (64, 32, 32, 3), np.uint8)
    return lambda: net.forward(images)[1]

def linear():
    head = _core.Linear(rng.standard_normal((100, 64)).astype(np.float32), np.zeros(100, np.float32))
    return lambda: head.forward(h, np.inf, "energy")[0]

def bank():
    detector = KNN(k=5).fit(h)
    return lambda: detector.score_samples(h[:200])

def distance():
    detector = Mahalanobis().fit(h, np.arange(3000) % 10)
    return lambda: detector.score_samples(h)

def fitting():
    labels = np.arange(3000) % 10
    return lambda: Mahalanobis().fit(h, labels).score_samples(h[:10])

def loading():
    images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    return lambda: dice.load_backbone("densenet", checkpoint).forward(images)[1]

use = globals()[kind]()
want = use().tobytes()
stop = threading.Event()

def busy():
    while not stop.is_set():
        use()

threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
ends = []
for _ in range({CHILDREN}):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.alarm({SECONDS})
        os._exit(0 if use().tobytes() == want and use().tobytes() == want else 3)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
assert use().tobytes() == want
print(ends)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.slow  # the locks of the sanitizers themselves do not survive a fork with threads
@pytest.mark.parametrize("kind", ["network", "linear", "bank", "distance", "fitting", "loading"])
def test_children_work_while_other_threads_are_in_the_core(kind: str, tmp_path: Path) -> None:
    save_densenet(tmp_path / "net.npz")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, tmp_path / "net.npz", kind],
        capture_output=True,
        text=True,
        env={**os.environ, "DICE_THREADS": "2"},
        timeout=CHILDREN * SECONDS + 60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{[0] * CHILDREN}\n"), done.stderr
