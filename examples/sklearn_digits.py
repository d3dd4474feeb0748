"""Uses scikit-learn's digits, 0 to 7 as ID and 8 and 9 as OOD: with a detector as the last step of a
pipeline, and with DICE on the hidden layer of an MLPClassifier. Needs scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline

import dice
from dice.detectors import Mahalanobis


def main():
    x, y = load_digits(return_X_y=True)
    known = y < 8
    train, rest, y_train, _ = train_test_split(x[known], y[known], train_size=0.6, random_state=0)
    held_out, test = rest[::2], rest[1::2]
    unknown = x[~known]

    pipeline = make_pipeline(PCA(30), Mahalanobis()).fit(train, y_train)
    pipeline[-1].set_threshold(tpr=0.95, scores=pipeline.score_samples(held_out))
    report("Mahalanobis in a pipeline", pipeline, test, unknown)

    mlp = MLPClassifier((64,), max_iter=500, random_state=0).fit(train / 16, y_train)

    def hidden(images):
        return np.maximum(images / 16 @ mlp.coefs_[0] + mlp.intercepts_[0], 0)

    detector = dice.DICE(mlp.coefs_[1].T, mlp.intercepts_[1], p=50).fit(hidden(train))
    detector.set_threshold(tpr=0.95, scores=detector.score_samples(hidden(held_out)))
    report("DICE on an MLPClassifier", detector, hidden(test), hidden(unknown))


def report(name, detector, test, unknown):
    ids, oods = detector.score_samples(test), detector.score_samples(unknown)
    found = dice.metrics.evaluate(ids, oods, "sklearn")
    print(
        f"{name}: AUROC {100 * found['auroc']:.2f}, FPR95 {100 * found['fpr95']:.2f} (sklearn convention), "
        f"{100 * np.mean(detector.predict(test) > 0):.2f} % of new ID images accepted"
    )


if __name__ == "__main__":
    main()
