"""Every score and metric on the real sets of the shared material equals that of the original."""

import numpy as np
import pytest

from dice import DICE, load_backbone
from dice.eval.metrics import evaluate
from dice.images.datasets import open_set
from dice.images.preprocess import transform_for

# golden's name of a set: (our name, split); OOD sets have a row in the original's table
SETS = {
    "cifar10_train": ("CIFAR-10", "train"),
    "cifar100_test": ("CIFAR-100", "test"),
    "cifar100_train": ("CIFAR-100", "train"),
    "svhn": ("SVHN", "test"),
    "isun": ("iSUN", "test"),
    "tin32": ("TinyImageNet32", "test"),
    "dtd": ("dtd", "test"),
    "places": ("places365", "test"),
}


def in_golden_order(name, images):
    """Indices from the folder's order (1.jpeg, 10.jpeg, ...) to golden's, which is by number for iSUN."""
    if name != "isun":
        return np.arange(len(images))
    return np.argsort([int(file.rsplit("/", 1)[-1].split(".")[0]) for file in images.files])


class Original:
    """The CIFAR-10 network of the authors: plain and DICE scores are compared with golden's."""

    def __init__(self, shared):
        self.root = shared / "realdata"
        self.golden = np.load(shared / "golden/cifar10_densenet.npz")
        self.net = load_backbone(
            "densenet", self.root / "checkpoints/CIFAR-10/densenet/checkpoint_100.pth.tar"
        )
        mean = np.load(self.root / "cache/CIFAR-10_densenet_feat_stat.npy")
        last = self.net.weight, self.net.bias
        self.detectors = {"energy": DICE(*last, p=None), "dice90": DICE(*last, p=90, mean=mean)}
        self.id_scores = self.scores("cifar10_test", "CIFAR-10", "test")

    def scores(self, name, known_as, split):
        """The scores of one set by detector, checked against golden's."""
        images = open_set(known_as, self.root, split=split)
        features = [self.net.forward(batch)[0] for _, batch in images.batches(transform_for("cifar"), 64)]
        h = np.concatenate(features)[in_golden_order(name, images)]
        found = {}
        for method, detector in self.detectors.items():
            found[method] = detector.score_samples(h)
            want = self.golden[f"{name}_{method}"]
            assert found[method].shape == want.shape
            assert np.abs(found[method] - want).max() < 5e-5
        return found


@pytest.fixture(scope="module")
def original(shared):
    return Original(shared)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_score_is_the_originals(name, original):
    scores = original.scores(name, *SETS[name])
    for method, ood in scores.items():
        got = evaluate(original.id_scores[method], ood)
        want = evaluate(original.golden[f"cifar10_test_{method}"], original.golden[f"{name}_{method}"])
        for metric in ("fpr95", "auroc"):
            assert abs(got[metric] - want[metric]) < 1e-3  # 0.1 point
