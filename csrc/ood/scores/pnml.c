/* pNML (Bibas, Feder & Hassner, NeurIPS 2021): the regret of the predictive normalised maximum likelihood. */
#include <math.h>

#include "ood/scores/rule.h"

/* -log(sum over c of q_c) / log C with q = p / (p + (1 - p) p^g), for p the softmax of the logits z; h is
 * (1), the leverage g. Written so that the small regrets of confident images keep their digits: with y the
 * predicted class, q_y - 1 = -x / (1 + x) for x = (1 - p_y) p_y^(g - 1), and the q of other classes is small.
 */
static void pnml(const dice_score_image *image, double *out)
{
    double max, *e = image->scratch;
    const double sum = dice_score_exp(image, 1, e, &max), power = image->h[0] - 1;
    const size_t label = dice_score_label(image), classes = image->classes;
    double others = 0, excess = 0;
    for (size_t c = 0; c < classes; c++) {
        others += c == label ? 0 : e[c];
    }
    for (size_t c = 0; c < classes; c++) {
        const double rest = c == label ? others : sum - e[c];
        const double x = rest / sum * exp(power * (image->z[c] - max - log(sum)));
        excess += c == label ? -x / (1 + x) : 1 / (1 + x);
    }
    *out = -log1p(excess) / (classes > 1 ? log((double)classes) : 1);
}

const dice_score_rule dice_score_pnml = {
    .name = "pnml", .reads = "zh", .arrays = "", .numbers = 0, .outputs = 1, .score = pnml};
