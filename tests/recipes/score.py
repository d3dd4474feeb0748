"""A score, margin: the largest logit minus the second largest."""

from recipes.addition import Addition, Edit, tests

SOURCE = r"""/* Margin: the largest logit minus the second largest; 0 where there is one class. */
#include <math.h>

#include "ood/scores/rule.h"

static void margin(const dice_score_image *image, double *out)
{
    double first = -INFINITY, second = -INFINITY;
    for (size_t c = 0; c < image->classes; c++) {
        const double z = image->z[c];
        second = fmax(second, fmin(first, z));
        first = fmax(first, z);
    }
    *out = image->classes > 1 ? first - second : 0;
}

const dice_score_rule dice_score_margin = {
    .name = "margin", .reads = "z", .arrays = "", .numbers = 0, .outputs = 1, .score = margin};
"""

ADDITION = Addition(
    recipe="A score",
    names={"<name>": "margin", "<kind>": "logits"},
    new={"csrc/ood/scores/margin.c": SOURCE},
    edits=[
        Edit("csrc/ood/scores/rule.h", "X(gradnorm)", before="X(margin) "),
        Edit("dice/detectors/logits.py", '"LogitScore", ', after='"Margin", '),
        Edit(
            "dice/detectors/logits.py",
            "class Energy(LogitScore):",
            before='''class Margin(LogitScore):
    """The largest logit minus the second largest; 0 where there is one class."""

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        return _core.score("margin", z, None, (), ())


''',
        ),
        Edit("dice/detectors/registry.py", "Entropy, MaxLogit, TempScale", before="Margin, "),
        Edit("dice/detectors/registry.py", '    "LastLayer",\n', after='    "Margin",\n'),
        Edit(
            "dice/detectors/registry.py",
            '        TableRow("tempscale",',
            before='        TableRow("margin", Margin, ""),\n',
        ),
        Edit(
            "tests/score_formulas.py",
            "def energy(z, T=1.0):",
            before="""def margin(z):
    ordered = np.sort(z, axis=1)
    return ordered[:, -1] - ordered[:, -2] if z.shape[1] > 1 else np.zeros(len(z))


""",
        ),
        Edit(
            "tests/score_formulas.py",
            '    "energy": lambda k, det: energy(k.z),\n',
            after='    "margin": lambda k, det: margin(k.z),\n',
        ),
    ],
    checks=[
        tests("test_scores.py", "margin or every_method"),
        tests("test_detector_files.py", "margin"),
        ["-c", "from dice.detectors import Margin; assert Margin().score_samples([[3.0, 1, 2]]) == 1"],
    ],
)
