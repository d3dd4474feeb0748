"""Puts an OOD gate before a classifier: images that are OOD get no class. Uses images that ship with dice."""

import numpy as np

import dice
from dice.data import load


class GatedClassifier:
    """A classifier that gives OOD images class -1. A share of at least `tpr` of the ID images pass."""

    def __init__(self, net, train, held_out, tpr=0.95):
        self.net = net
        self.detector = dice.DICE(net.weight, net.bias, p=90).fit(net.forward(train)[0])
        scores = self.detector.score_samples(net.forward(held_out)[0])
        self.detector.set_threshold(tpr=tpr, scores=scores)

    def predict(self, images):
        h, z = self.net.forward(images)
        return np.where(self.detector.predict(h) > 0, z.argmax(axis=1), -1)


def main():
    data = load()
    net = dice.load_backbone("densenet", data.checkpoint)
    gate = GatedClassifier(net, data.train[0], data.validation[0])
    images, labels = data.test
    answer = gate.predict(images)
    passed = answer >= 0
    print(
        f"digits 0-7    {100 * passed.mean():6.2f} % pass, "
        f"of these {100 * np.mean(answer[passed] == labels[passed]):.2f} % right"
    )
    for name, others in data.ood.items():
        print(f"{name:13s} {100 * np.mean(gate.predict(others) >= 0):6.2f} % pass")


if __name__ == "__main__":
    main()
