/* Products of rows with a fixed matrix. See product.h. */
#include "linalg/product.h"

#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"

enum { DEPTH = 128 }; /* inputs of one step, few enough that its weights and rows stay in the L1 cache */

typedef struct packing {
    const dice_product *product;
    const double *w;
} packing;

static dice_status pack(void *context, size_t panel, int thread)
{
    (void)thread;
    const packing *p = context;
    const size_t inputs = p->product->inputs, first = panel * DICE_ROW_PANEL;
    double *to = p->product->weight + first * inputs;
    for (size_t j = 0; j < DICE_ROW_PANEL; j++) {
        const size_t row = first + j;
        const size_t reach = p->product->triangular ? dice_least(row + 1, inputs) : inputs;
        const size_t given = row < p->product->outputs ? reach : 0;
        for (size_t k = 0; k < inputs; k++) {
            to[k * DICE_ROW_PANEL + j] = k < given ? p->w[row * inputs + k] : 0;
        }
    }
    return DICE_OK;
}

dice_status dice_product_init(dice_product *product, const double *w, size_t outputs, size_t inputs,
                              int triangular, const dice_row_kernels *kernels)
{
    const size_t panels = dice_ceil_div(outputs, DICE_ROW_PANEL);
    *product = (dice_product){.kernels = kernels,
                              .outputs = outputs,
                              .inputs = inputs,
                              .triangular = triangular,
                              .width = panels * DICE_ROW_PANEL};
    void *memory;
    const dice_status status = dice_alloc(product->width, inputs * sizeof *product->weight, &memory);
    if (status != DICE_OK) {
        return status;
    }
    product->weight = memory;
    packing p = {product, w};
    return dice_parallel_for(panels, pack, &p);
}

void dice_product_free(dice_product *product)
{
    dice_free(product->weight);
    product->weight = NULL;
}

void dice_product_run(const dice_product *product, const double *x, size_t n, double *out)
{
    const size_t inputs = product->inputs;
    memset(out, 0, n * product->width * sizeof *out);
    for (size_t first = 0; first < product->width; first += DICE_ROW_PANEL) {
        const double *w = product->weight + first * inputs;
        const size_t depth = product->triangular ? dice_least(first + DICE_ROW_PANEL, inputs) : inputs;
        for (size_t k = 0; k < depth; k += DEPTH) {
            product->kernels->product(x + k, inputs, n, w + k * DICE_ROW_PANEL, dice_least(depth - k, DEPTH),
                                      out + first, product->width);
        }
    }
}
