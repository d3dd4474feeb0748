"""scikit-learn on its digits, 0 to 7 in-distribution, 8 and 9 not: a detector as the last step of a pipeline, and DICE on
the hidden layer of an MLPClassifier. Needs scikit-learn."""

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
    report("Mahalanobis in a pipeline", pipeline.score_samples(test), pipeline.score_samples(unknown),
           pipeline.predict(test))  # fmt: skip

    mlp = MLPClassifier((64,), max_iter=500, random_state=0).fit(train / 16, y_train)

    def hidden(images):
        return np.maximum(images / 16 @ mlp.coefs_[0] + mlp.intercepts_[0], 0)

    detector = dice.DICE(mlp.coefs_[1].T, mlp.intercepts_[1], p=50).fit(hidden(train))
    detector.set_threshold(tpr=0.95, scores=detector.score_samples(hidden(held_out)))
    report("DICE on an MLPClassifier", detector.score_samples(hidden(test)), detector.score_samples(hidden(unknown)),
           detector.predict(hidden(test)))  # fmt: skip


def report(name, ids, oods, verdicts):
    found = dice.metrics.evaluate(ids, oods, "sklearn")
    print(f"{name}: AUROC {100 * found['auroc']:.2f}, FPR95 {100 * found['fpr95']:.2f} (sklearn convention), "
          f"{100 * np.mean(verdicts > 0):.2f} % of new ID images accepted")  # fmt: skip


if __name__ == "__main__":
    main()
