"""Scores features, which any program may have saved, by every method that needs no labels:
python features_from_npy.py W.npy b.npy TRAIN.npy ID.npy OOD.npy

W (C, D) and b (C,) are the last layer of the network, the other files the features that go into it, (N, D).
They are memory-mapped and read once, a block at a time. The scores of each METHOD are saved as ID.METHOD.npy
and OOD.METHOD.npy.
"""

import sys
from pathlib import Path

import numpy as np

import dice


def main(weight, bias, train, *tests):
    scores = dice.fit_and_score(
        np.load(train, mmap_mode="r"),
        {file: np.load(file, mmap_mode="r") for file in tests},
        W=np.load(weight),
        b=np.load(bias),
    )
    for method, found in scores.items():
        for file, values in found.items():
            np.save(Path(file).with_suffix(f".{method}.npy"), values)
        result = dice.metrics.evaluate(*found.values(), convention="paper")
        print(
            f"{method:12s} FPR95 {100 * result['fpr95']:6.2f}  AUROC {100 * result['auroc']:6.2f}  "
            "(paper convention)"
        )


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
