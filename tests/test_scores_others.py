"""The scores against pytorch-ood's (the extra `bench`), where it is installed; with why they differ."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import spearmanr

from dice.detectors.activations import VRA
from dice.detectors.registry import METHODS, make

pytest.importorskip(
    "pytorch_ood" if "torchvision" in sys.modules else "torch", reason="pytorch-ood is not installed"
)
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bench_scores  # noqa: E402
import torch  # noqa: E402

RNG = np.random.default_rng(0)
C, D = 6, 40
W, B = RNG.standard_normal((C, D)).astype(np.float32), RNG.standard_normal(C).astype(np.float32)
H, h = (np.maximum(RNG.standard_normal((n, D)) + 0.3, 0).astype(np.float32) for n in (600, 50))
Y = (H @ W.T + B).argmax(1)  # all right: pytorch-ood's OpenMax takes wrong ones too

ABSENT = {
    *("dice+react", "residual", "relation", "weiper", "mds++", "rmds++", "ssd+"),
    *("ctm", "cadref", "kpca", "neco", "optfs"),
}
PARAMETERS = {
    "nnguide": {"fraction": 1.0},  # its bank is all images
    "openmax": {"translation": 10000.0},
    "vra": {"activation": VRA(below="clip")},
}


def logits(x):
    return x @ W.T + B


def explained(name, theirs):
    """Their score as ours would be."""
    if name == "gen":
        return theirs * C  # the mean over the classes
    if name in ("mds", "rmds"):  # its covariance is a sum over the images, and Mahalanobis halves
        return theirs * len(H) * (2 if name == "mds" else 1)
    if name == "gradnorm":  # the bias's gradient counts too, and targets are 1 / C
        norm = np.abs(h).sum(1)
        return theirs * C * norm / (norm + 1)
    if name == "knn":
        return -(theirs**2)  # the distance, not its square
    if name == "fdbd":
        return theirs * (C - 1)  # the mean over the other classes
    return theirs


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ABSENT])
def test_equals_pytorch_ood(name):
    found = bench_scores.other(name, W, B)
    if found is None:
        pytest.skip("pytorch-ood is not installed")
    _, takes, fit, predict = found
    row = METHODS[name]
    det = make(name, W, B, **PARAMETERS.get(name, {}))
    train, test = (logits(H), logits(h)) if row.takes == "z" else (H, h)
    # where all images are right, pytorch-ood's temperature falls to 0
    y = np.where(np.arange(len(Y)) % 9 == 0, (Y + 1) % C, Y) if name == "tempscale" else Y
    if row.needs_fit:
        det.fit(train, y)
    if fit is not None:
        fit(torch.from_numpy(logits(H) if takes == "l" else H), torch.from_numpy(y))
    theirs = -predict(torch.from_numpy(logits(h) if takes == "l" else h)).detach().numpy().astype(np.float64)
    ours = det.score_samples(test)
    if name == "pnml":  # it leaves out most directions, as its inverse is float32, and the bias column
        assert spearmanr(ours, theirs).statistic > 0.8
        return
    if name == "tempscale":  # it stops after some steps of LBFGS
        assert spearmanr(ours, theirs).statistic > 0.5
        return
    if name == "dice":  # its quantile is float32 and one weight may fall on the other side
        assert np.median(np.abs(ours - theirs)) < 1e-3
        return
    if name == "openmax":  # scipy's fit of the Weibull stops early for some class
        assert np.median(np.abs(ours - theirs)) < 1e-4
        return
    want = explained(name, theirs)
    if name == "gen":  # it takes p for 1e-7 at least
        seen = softmax(logits(h), axis=1).min(1) > 1e-6
        ours, want = ours[seen], want[seen]
    np.testing.assert_allclose(ours, want, rtol=2e-4, atol=2e-4 * np.abs(want).max())
