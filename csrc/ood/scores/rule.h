/* A score as a rule: one number, or several, from one image's logits and features; and what rules share.
 *
 * A rule sees one image as doubles, so that an image's bits depend on nothing else. Letters: N images, C
 * classes, D features; z logits, h features, p = softmax(z). */
#ifndef DICE_OOD_SCORES_RULE_H
#define DICE_OOD_SCORES_RULE_H

#include <stddef.h>

#include "base/status.h"
#include "linalg/rows.h"

/* An array (n, width) of floats or doubles. */
typedef struct dice_rows {
    const void *data;
    int is_double;
    size_t n, width;
} dice_rows;

/* Row i as doubles: where it lies, or converted into to (width). */
const double *dice_rows_at(const dice_rows *rows, size_t i, double *to);

typedef struct dice_score_image {
    const dice_row_kernels *kernels;
    const double *z, *h; /* (C), (D); NULL where the rule does not read them */
    size_t classes, features;
    const double *const *arrays; /* the fitted arrays, in the shapes that the rule's `arrays` names */
    const double *numbers;       /* the parameters */
    double *scratch;             /* (2 C + D) working memory */
} dice_score_image;

typedef struct dice_score_rule {
    const char *name;
    const char *reads; /* "z", "h" or "zh" */
    const char
        *arrays; /* shapes of the fitted arrays: "CD D C3" is (C, D), (D), (C, 3); "fCC" holds floats */
    int numbers; /* how many parameters there are */
    int outputs; /* how many numbers an image gets: 1 for a score, more for a rule that a fit uses */
    void (*score)(const dice_score_image *image, double *out);
} dice_score_rule;

/* The index of the largest logit, the first where several are equal; and dice_rows_exp of an image's
 * logits. */
size_t dice_score_label(const dice_score_image *image);
double dice_score_exp(const dice_score_image *image, double scale, double *e, double *max);

/* The names of all rules. dice_score_NAME is defined in one of the files of this folder. */
#define DICE_SCORE_RULES(X)                                                                                  \
    X(msp)                                                                                                   \
    X(maxlogit)                                                                                              \
    X(energy)                                                                                                \
    X(entropy)                                                                                               \
    X(gen)                                                                                                   \
    X(likelihood)                                                                                            \
    X(openmax) X(gradnorm) X(fdbd) X(nci) X(she) X(klm_label) X(residual) X(lts) X(pnml) X(cadref)
#define DICE_SCORE_DECLARE(name) extern const dice_score_rule dice_score_##name;
DICE_SCORE_RULES(DICE_SCORE_DECLARE)

#endif
