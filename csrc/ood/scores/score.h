/* Post-hoc scores: one number an image from its logits, its features, or both. Higher = more in-distribution.
 *
 * A score is a row rule in a table. The runner reads an image's rows as doubles, whatever they are stored as,
 * gives them to the rule and spreads the images over the threads; a rule sees one image, so that an image's
 * bits depend on nothing else. Letters: N images, C classes, D features; z logits, h features, p =
 * softmax(z). */
#ifndef DICE_OOD_SCORES_SCORE_H
#define DICE_OOD_SCORES_SCORE_H

#include <stddef.h>

#include "base/status.h"
#include "linalg/rows.h"

/* (n, width), float or double, row after row. */
typedef struct dice_rows {
    const void *data;
    int is_double;
    size_t n, width;
} dice_rows;

/* Row i as doubles: in place, or converted into `to` (width). */
const double *dice_rows_at(const dice_rows *rows, size_t i, double *to);

typedef struct dice_score_image {
    const dice_row_kernels *kernels;
    const double *z, *h; /* (C), (D); NULL where the rule does not read them */
    size_t classes, features;
    const double *const *arrays; /* what was fitted, as `arrays` of the rule says */
    const double *numbers;       /* parameters */
    double *scratch;             /* (2 C + D) */
} dice_score_image;

typedef struct dice_score_rule {
    const char *name;
    const char *reads;  /* "z", "h" or "zh" */
    const char *arrays; /* their shapes, "CD D C3": letters C and D, or a digit; "fCC" holds floats */
    int numbers;
    int outputs; /* numbers an image: 1, or more where a fit wants several */
    void (*score)(const dice_score_image *image, double *out);
} dice_score_rule;

/* The rule of that name, or NULL. */
const dice_score_rule *dice_score_find(const char *name);

/* out (N, outputs). z, h: those that the rule reads, of equal N and at least one column. */
dice_status dice_score_run(const dice_score_rule *rule, const dice_rows *z, const dice_rows *h,
                           const double *const *arrays, const double *numbers, double *out);

/* For rules: the first largest logit; dice_rows_exp of the logits. */
size_t dice_score_label(const dice_score_image *image);
double dice_score_exp(const dice_score_image *image, double scale, double *e, double *max);

/* Every rule, by name: dice_score_NAME is defined in one of score_*.c. */
#define DICE_SCORE_RULES(X)                                                                                  \
    X(msp)                                                                                                   \
    X(maxlogit)                                                                                              \
    X(energy)                                                                                                \
    X(entropy) X(gen) X(likelihood) X(openmax) X(gradnorm) X(fdbd) X(nci) X(she) X(klm_label) X(residual)
#define DICE_SCORE_DECLARE(name) extern const dice_score_rule dice_score_##name;
DICE_SCORE_RULES(DICE_SCORE_DECLARE)

#endif
