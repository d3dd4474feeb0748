"""Eight threads that use the same networks, detectors and arrays at the same time, for the thread sanitizer.

Each thread must get the results that one thread alone gets: exit status 0 where all did, else 1. The
sanitizer makes it 66 where it saw a race, as it must with `--race`, where all threads learn into one object.
`.ci/run` says how to start it.
"""

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tiny import save_densenet

import dice
from dice import _core
from dice.detectors import KNN, Mahalanobis
from dice.detectors.registry import make
from dice.stats.moments import Moments

THREADS = 8

RNG = np.random.default_rng(0)
H = np.abs(RNG.standard_normal((300, 20))).astype(np.float32)
Y = np.arange(300) % 4
W, B = RNG.standard_normal((4, 20)).astype(np.float32), np.zeros(4, np.float32)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3), np.uint8)


def actions(checkpoint: Path) -> dict[str, Callable[[], np.ndarray]]:
    """By name; what they return depends on no other thread."""
    nets = {p: dice.load_backbone("densenet", checkpoint, precision=p) for p in ("float32", "bf16x3", "bf16")}
    detectors = {
        "dice": dice.DICE(W, B, p=70).fit(H),
        "react": make("react", W, B).fit(H),
        "knn": KNN(k=3).fit(H),
        "distance": Mahalanobis().fit(H, Y),
    }
    a, b = detectors["knn"].score_samples(H[:50]), detectors["knn"].score_samples(H[50:] * 2)
    found: dict[str, Callable[[], np.ndarray]] = {
        "load": lambda: dice.load_backbone("densenet", checkpoint).weight,
        "fit dice": lambda: dice.DICE(W, B, p=70).fit(H).score_samples(H),
        "fit distance": lambda: Mahalanobis().fit(H, Y).score_samples(H[:9]),
        "fit bank": lambda: KNN(k=3).fit(H).score_samples(H[:9]),
        "metrics": lambda: np.array(_core.metric_measure(a, b, 0, 0.95, 0.05)),
        "refusal": lambda: np.array([refused(detectors["dice"])]),
    }
    for precision, net in nets.items():
        found[f"forward {precision}"] = lambda net=net: net.forward(IMAGES)[1]
        found[f"one image {precision}"] = lambda net=net: net.forward(IMAGES[:1])[1]
    for name, detector in detectors.items():
        found[f"score {name}"] = lambda detector=detector: detector.score_samples(H)
    return found


def refused(detector: dice.DICE) -> int:
    """1 where NaN is refused: messages are kept by thread."""
    try:
        detector.score_samples(np.full((2, 20), np.nan, np.float32))
    except dice.InputError as words:
        return int("NaN" in str(words))
    return 0


def together(work: Callable[[int], None]) -> None:
    """Runs `work` in all threads, and begins in all at the same time."""
    start = threading.Barrier(THREADS)

    def started(number: int) -> None:
        start.wait()
        work(number)

    threads = [threading.Thread(target=started, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def race() -> None:
    moments, block = Moments(64), np.ones((3000, 64), np.float32)

    def learn(_: int) -> None:
        for _ in range(50):
            moments.add(block)

    together(learn)


def wrong_results(rounds: int) -> set[str]:
    """The actions that gave something else to one of the threads."""
    with tempfile.TemporaryDirectory() as folder:
        todo = actions(save_densenet(Path(folder) / "net.npz"))
        want = {name: action().tobytes() for name, action in todo.items()}
        names, wrong = [*todo], set()

        def work(number: int) -> None:
            for step in range(rounds * len(names)):  # two and two threads do the same at the same time
                name = names[(step + number // 2) % len(names)]
                try:
                    same = todo[name]().tobytes() == want[name]
                except Exception as reason:
                    same, name = False, f"{name}: {reason!r}"
                if not same:
                    wrong.add(name)

        together(work)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often each thread does everything")
    parser.add_argument("--race", action="store_true", help="learn into one object from all threads")
    args = parser.parse_args()
    if args.race:
        race()
        return 0
    if wrong := wrong_results(args.rounds):
        print("not what one thread alone gets:", ", ".join(sorted(wrong)), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
