"""What should make a reader doubt numbers, in words: one sentence for each kind."""

from collections.abc import Mapping, Sequence

from dice.eval.results import Metrics, Result

__all__ = ["FEW", "accuracy", "below_half", "few_images", "of_results", "ties", "ties_of_calibration"]

MANY_TIES = 0.1  # of calibration scores
FEW = 100  # of fewer images one is more than a point of FPR
_NAMED = 4


def of_results(results: Sequence[Result], classes: int) -> list[str]:
    """All doubts about the results of one evaluation; `classes`: how many the network has."""
    first = results[0]
    if first.random_weights:
        return []
    right = [result.accuracy for result in results if result.accuracy is not None]
    measured = {
        f"{result.method.title} on {name}": row.measured
        for result in results
        for name, row in result.sets.items()
        if row.measured is not None
    }
    found = [
        accuracy(max(right), first.n_id, classes) if right else "",
        below_half(measured),
        few_images({name: row.n for name, row in first.sets.items() if row.measured is not None}),
    ]
    return [words for words in found if words]


def accuracy(percent: float, n: int, classes: int) -> str:
    """The doubt where `percent` of `n` images right is less than two standard deviations above guessing; else
    ""."""
    chance = 1 / classes
    if n < 20 or percent / 100 > chance + 2 * (chance * (1 - chance) / n) ** 0.5:
        return ""
    return (
        f"accuracy {percent:.2f} % over {n} images is what guessing among {classes} classes gives: is it the "
        "right checkpoint, preprocessing, and order of the classes?"
    )


def below_half(measured: Mapping[str, Metrics], half: float = 50) -> str:
    """The doubt where an AUROC is below `half`, naming method and set; else ""."""
    low = {name: row.auroc for name, row in measured.items() if row.auroc < half}
    if not low:
        return ""
    some = _some([f"{name} {value * 50 / half:.2f}" for name, value in low.items()])
    return f"AUROC below 50 ({some}): OOD images score above ID images; are the ID and OOD sets swapped?"


def few_images(sizes: Mapping[str, int]) -> str:
    """The doubt where an average takes in OOD sets with few images, from their sizes by name; else ""."""
    few = [f"{name} {n}" for name, n in sizes.items() if n < FEW]
    if not few:
        return ""
    return (
        f"fewer than {FEW} images ({_some(few)}): one image is more than a point of FPR, and an average "
        "counts such a set as much as any other"
    )


def ties(tied: float, convention: str) -> str:
    """Says that `tied` percent of the scores equal the threshold of FPR."""
    return f"{tied:.1f} % of the {'ID' if convention == 'openood' else 'OOD'} scores equal the threshold"


def ties_of_calibration(tied: float, n: int) -> str:
    """Of the share `tied` of `n` held-out scores that equal the threshold: a new image that scores the same
    is accepted whatever it shows."""
    if tied * n < 2 or tied < MANY_TIES:
        return ""
    return (
        f"{100 * tied:.1f} % of {n} calibration scores equal the threshold: the score hardly tells images "
        "apart, and whatever scores the same is accepted"
    )


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:_NAMED]) + (", ..." if len(words) > _NAMED else "")
