"""Computes metrics of scores, which any program may have saved; higher = in-distribution:
python scores_from_npy.py ID.npy OOD.npy
"""

import sys

from dice.eval import metrics
from dice.io import read_npy


def main(id_file, ood_file):
    ids, oods = read_npy(id_file, ndim=1), read_npy(ood_file, ndim=1)
    print(
        f"{'convention':12s}"
        + "".join(f"{name:>8s}" for name in metrics.METRICS)
        + "   95 % interval of AUROC"
    )
    for convention in metrics.CONVENTIONS:
        found = metrics.evaluate(ids, oods, convention)
        low, high = metrics.bootstrap(ids, oods, convention, replicates=200)["auroc"]
        cells = "".join(f"{100 * value:8.2f}" for value in found.values())
        print(f"{convention:12s}{cells}   {100 * low:.2f} to {100 * high:.2f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
