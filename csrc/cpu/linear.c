/* linear on a CPU. W is packed once: sparse, dense or both, whichever is faster. A forward call multiplies
 * bundles of images by panels of classes, then reduces the logits of each image. linear_kernels.h has the
 * layouts. */
#include "cpu/linear.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"
#include "cpu/linear_kernels.h"
#include "cpu/kernels.h"

/* Measured (benchmarks/bench_head.py): multiplying 16 images by one weight of the sparse layout takes
 * sparse_cost times as long as multiplying four images by one weight of the dense layout. So for many images
 * the sparse layout is faster where the share of weights kept is below 4 / sparse_cost. */
static const double sparse_cost = 6.8;

enum {
    DENSE_PANEL = 16 * DICE_LINEAR_VECTORS,
    WAVE_BYTES = 2 << 20,  /* of a wave's packed images and logits, which stay in the cache */
    BOTH_BYTES = 16 << 20, /* up to here dense weights are kept too: for few images they are faster */
    REDUCE_IMAGES = 8      /* images of a task that reduces logits */
};

/* The first quad and the first entry of a block of a sparse panel. */
typedef struct block {
    size_t quad, entry;
} block;

struct dice_linear {
    const dice_linear_kernels *kernels;
    size_t classes, features;
    size_t bytes;
    double density;        /* share of the weights that stay */
    float *bias;           /* (M) */
    float *dense;          /* (M / 16, D, 16), or NULL */
    size_t panels, blocks; /* sparse: of DICE_LINEAR_PANEL classes; of DICE_LINEAR_BLOCK features */
    block *begin;          /* (panels * blocks + 1), the last is the end; NULL: no sparse layout */
    dice_linear_quad *quads;
    float *sparse;  /* (entries, 4) */
    uint8_t *index; /* (entries, 4) */
};

void dice_linear_free(dice_linear *linear)
{
    if (linear != NULL) {
        dice_free(linear->bias);
        dice_free(linear->dense);
        dice_free(linear->begin);
        dice_free(linear->quads);
        dice_free(linear->sparse);
        dice_free(linear->index);
        dice_free(linear);
    }
}

/* A layer being packed. */
typedef struct packing {
    dice_linear *linear;
    const float *weight;
    const uint8_t *keep; /* NULL = all stay */
} packing;

static int stays(const packing *p, size_t at)
{
    return p->keep == NULL || p->keep[at];
}

static dice_status pack_dense(void *context, size_t vector, int thread)
{
    (void)thread;
    const packing *p = context;
    const size_t features = p->linear->features, first = 16 * vector,
                 lanes = dice_least(16, p->linear->classes - first);
    float *to = p->linear->dense + first * features;
    memset(to, 0, 16 * features * sizeof *to);
    for (size_t lane = 0; lane < lanes; lane++) {
        const size_t row = (first + lane) * features;
        for (size_t d = 0; d < features; d++) {
            to[16 * d + lane] = stays(p, row + d) ? p->weight[row + d] : 0;
        }
    }
    return DICE_OK;
}

/* Sorts the panel's classes by their number of weights in a block, most first, and cuts them into quads;
 * returns how many. */
static size_t make_quads(const packing *p, size_t panel, size_t block_index, dice_linear_quad *quads)
{
    const dice_linear *linear = p->linear;
    const size_t first = panel * DICE_LINEAR_PANEL,
                 classes = dice_least(DICE_LINEAR_PANEL, linear->classes - first);
    const size_t d0 = block_index * DICE_LINEAR_BLOCK,
                 count = dice_least(DICE_LINEAR_BLOCK, linear->features - d0);
    const size_t n_quads = dice_ceil_div(classes, DICE_LINEAR_QUAD);
    size_t place[DICE_LINEAR_BLOCK + 2] = {0}; /* counting sort, by falling number */
    uint16_t number[DICE_LINEAR_PANEL] = {0};
    for (size_t m = 0; m < n_quads * DICE_LINEAR_QUAD; m++) {
        for (size_t d = 0; m < classes && d < count; d++) {
            number[m] = (uint16_t)(number[m] + stays(p, (first + m) * linear->features + d0 + d));
        }
        place[DICE_LINEAR_BLOCK - number[m] + 1]++;
    }
    for (size_t i = 1; i <= DICE_LINEAR_BLOCK; i++) {
        place[i] += place[i - 1];
    }
    for (size_t m = 0; m < n_quads * DICE_LINEAR_QUAD; m++) {
        const size_t at = place[DICE_LINEAR_BLOCK - number[m]]++;
        dice_linear_quad *quad = quads + at / DICE_LINEAR_QUAD;
        quad->row[at % DICE_LINEAR_QUAD] = (uint8_t)m;
        if (at % DICE_LINEAR_QUAD == 0) {
            quad->entries = number[m];
        }
    }
    return n_quads;
}

/* Pass 1 of packing: begin[i] = how many quads and entries block i holds. */
static dice_status size_panel(void *context, size_t panel, int thread)
{
    (void)thread;
    const packing *p = context;
    dice_linear *linear = p->linear;
    for (size_t b = 0; b < linear->blocks; b++) {
        dice_linear_quad quads[DICE_LINEAR_PANEL / DICE_LINEAR_QUAD];
        block *counts = linear->begin + panel * linear->blocks + b;
        counts->quad = make_quads(p, panel, b, quads);
        counts->entry = 0;
        for (size_t g = 0; g < counts->quad; g++) {
            counts->entry += quads[g].entries;
        }
    }
    return DICE_OK;
}

/* Pass 2 of packing: fills quads and entries. */
static dice_status fill_panel(void *context, size_t panel, int thread)
{
    (void)thread;
    const packing *p = context;
    const dice_linear *linear = p->linear;
    for (size_t b = 0; b < linear->blocks; b++) {
        const block *begin = linear->begin + panel * linear->blocks + b;
        const size_t d0 = b * DICE_LINEAR_BLOCK, count = dice_least(DICE_LINEAR_BLOCK, linear->features - d0);
        dice_linear_quad *quads = linear->quads + begin->quad;
        const size_t n_quads = make_quads(p, panel, b, quads);
        float *weight = linear->sparse + begin->entry * DICE_LINEAR_QUAD;
        uint8_t *index = linear->index + begin->entry * DICE_LINEAR_QUAD;
        for (size_t g = 0; g < n_quads; g++) {
            const size_t entries = quads[g].entries;
            memset(weight, 0, entries * DICE_LINEAR_QUAD * sizeof *weight);
            memset(index, 0, entries * DICE_LINEAR_QUAD);
            for (size_t lane = 0; lane < DICE_LINEAR_QUAD; lane++) {
                const size_t m = panel * DICE_LINEAR_PANEL + quads[g].row[lane];
                const size_t row = m * linear->features + d0;
                size_t entry = lane;
                for (size_t d = 0; m < linear->classes && d < count; d++) {
                    if (stays(p, row + d)) {
                        weight[entry] = p->weight[row + d];
                        index[entry] = (uint8_t)d;
                        entry += DICE_LINEAR_QUAD;
                    }
                }
            }
            weight += entries * DICE_LINEAR_QUAD;
            index += entries * DICE_LINEAR_QUAD;
        }
    }
    return DICE_OK;
}

static dice_status create_dense(packing *p)
{
    dice_linear *linear = p->linear;
    const size_t vectors = dice_ceil_div(linear->classes, 16);
    void *memory;
    const dice_status status = dice_alloc(vectors * 16, linear->features * sizeof *linear->dense, &memory);
    if (status != DICE_OK) {
        return status;
    }
    linear->dense = memory;
    linear->bytes += vectors * 16 * linear->features * sizeof *linear->dense;
    return dice_parallel_for(vectors, pack_dense, p);
}

static dice_status create_sparse(packing *p)
{
    dice_linear *linear = p->linear;
    void *memory;
    linear->panels = dice_ceil_div(linear->classes, DICE_LINEAR_PANEL);
    const size_t all_blocks = linear->panels * linear->blocks;
    dice_status status = dice_alloc(all_blocks + 1, sizeof *linear->begin, &memory);
    if (status != DICE_OK) {
        return status;
    }
    linear->begin = memory;
    status = dice_parallel_for(linear->panels, size_panel, p);
    if (status != DICE_OK) {
        return status;
    }
    block total = {0, 0};
    for (size_t i = 0; i <= all_blocks; i++) {
        const block here = i < all_blocks ? linear->begin[i] : (block){0, 0};
        linear->begin[i] = total;
        total.quad += here.quad;
        total.entry += here.entry;
    }
    const size_t entries = total.entry * DICE_LINEAR_QUAD;
    if ((status = dice_alloc(entries, sizeof *linear->sparse, &memory)) != DICE_OK) {
        return status;
    }
    linear->sparse = memory;
    if ((status = dice_alloc(entries, sizeof *linear->index, &memory)) != DICE_OK) {
        return status;
    }
    linear->index = memory;
    if ((status = dice_alloc(total.quad, sizeof *linear->quads, &memory)) != DICE_OK) {
        return status;
    }
    linear->quads = memory;
    linear->bytes += entries * (sizeof *linear->sparse + sizeof *linear->index)
                   + total.quad * sizeof *linear->quads + (all_blocks + 1) * sizeof *linear->begin;
    return dice_parallel_for(linear->panels, fill_panel, p);
}

dice_status dice_linear_create(const float *weight, const float *bias, const uint8_t *keep, size_t classes,
                               size_t features, const dice_options *options, dice_linear **out)
{
    void *memory;
    dice_status status = dice_alloc_zero(1, sizeof(dice_linear), &memory);
    if (status != DICE_OK) {
        return status;
    }
    dice_linear *linear = memory;
    linear->kernels = dice_cpu_kernels_for(options->isa)->linear;
    linear->classes = classes;
    linear->features = features;
    linear->blocks = dice_ceil_div(features, DICE_LINEAR_BLOCK);
    status = dice_alloc(classes, sizeof *linear->bias, &memory);
    if (status == DICE_OK) {
        linear->bias = memory;
        memcpy(linear->bias, bias, classes * sizeof *bias);
        size_t kept = 0;
        for (size_t i = 0; keep != NULL && i < classes * features; i++) {
            kept += keep[i];
        }
        packing p = {.linear = linear, .weight = weight, .keep = keep};
        linear->density = keep == NULL ? 1 : (double)kept / (double)classes / (double)features;
        const int sparse = linear->density * sparse_cost < 4;
        const int small = classes * features <= BOTH_BYTES / sizeof *weight;
        if (sparse) {
            status = create_sparse(&p);
        }
        if (status == DICE_OK && (!sparse || (small && linear->density * sparse_cost > 1))) {
            status = create_dense(&p);
        }
    }
    if (status != DICE_OK) {
        dice_linear_free(linear);
        return status;
    }
    linear->bytes += classes * sizeof *bias;
    *out = linear;
    return DICE_OK;
}

/* A wave: as many images as the scratch holds. */
typedef struct wave {
    const dice_linear *linear;
    const float *h;           /* (n, D) */
    size_t n, lanes, bundles; /* images, images to a bundle, bundles */
    int dense;
    float clip;
    float *packed; /* (bundles, D, lanes) */
    float *logits; /* (n, M) */
} wave;

static size_t images_of(const wave *w, size_t bundle)
{
    return dice_least(w->lanes, w->n - bundle * w->lanes);
}

/* The last bundle may be narrower. */
static size_t lanes_of(const wave *w, size_t bundle)
{
    const size_t images = images_of(w, bundle);
    return images == 1 && !w->dense ? 1 : images <= 16 ? 16 : w->lanes;
}

static dice_status pack_bundle(void *context, size_t bundle, int thread)
{
    (void)thread;
    const wave *w = context;
    const size_t features = w->linear->features;
    w->linear->kernels->pack(w->packed + bundle * w->lanes * features, lanes_of(w, bundle),
                             w->h + bundle * w->lanes * features, images_of(w, bundle), features, w->clip);
    return DICE_OK;
}

static void multiply_sparse(const wave *w, size_t panel, size_t bundle)
{
    const dice_linear *linear = w->linear;
    const size_t first = panel * DICE_LINEAR_PANEL,
                 classes = dice_least(DICE_LINEAR_PANEL, linear->classes - first);
    const size_t lanes = lanes_of(w, bundle);
    _Alignas(64) float z[DICE_LINEAR_PANEL * DICE_LINEAR_IMAGES];
    for (size_t m = 0; m < dice_round_up(classes, DICE_LINEAR_QUAD); m++) {
        const float bias = m < classes ? linear->bias[first + m] : 0;
        for (size_t i = 0; i < lanes; i++) {
            z[m * lanes + i] = bias;
        }
    }
    const float *ht = w->packed + bundle * w->lanes * linear->features;
    for (size_t b = 0; b < linear->blocks; b++) {
        const block *begin = linear->begin + panel * linear->blocks + b;
        linear->kernels->sparse[lanes / 16](ht + b * DICE_LINEAR_BLOCK * lanes, linear->quads + begin->quad,
                                            begin[1].quad - begin->quad,
                                            linear->sparse + begin->entry * DICE_LINEAR_QUAD,
                                            linear->index + begin->entry * DICE_LINEAR_QUAD, z);
    }
    linear->kernels->unpack(w->logits + bundle * w->lanes * linear->classes + first, linear->classes, z,
                            lanes, images_of(w, bundle), classes);
}

static void multiply_dense(const wave *w, size_t panel, size_t bundle)
{
    const dice_linear *linear = w->linear;
    const size_t first = panel * DENSE_PANEL, classes = dice_least(DENSE_PANEL, linear->classes - first);
    const size_t n = images_of(w, bundle), lanes = lanes_of(w, bundle), stride = 16 * linear->features;
    _Alignas(64) float z[DICE_LINEAR_IMAGES * DENSE_PANEL], bias[DENSE_PANEL] = {0};
    memcpy(bias, linear->bias + first, classes * sizeof *bias);
    for (size_t i = 0; i < lanes; i++) {
        memcpy(z + i * DENSE_PANEL, bias, sizeof bias);
    }
    const float *ht = w->packed + bundle * w->lanes * linear->features;
    for (size_t d = 0; d < linear->features; d += DICE_LINEAR_BLOCK) {
        linear->kernels->dense(ht + d * lanes, lanes, n, linear->dense + first * linear->features + 16 * d,
                               stride, (int)dice_ceil_div(classes, 16),
                               dice_least(DICE_LINEAR_BLOCK, linear->features - d), z);
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(w->logits + (bundle * w->lanes + i) * linear->classes + first, z + i * DENSE_PANEL,
               classes * sizeof *z);
    }
}

/* Bundles of one panel follow each other, so that its weights stay in the cache. */
static dice_status multiply(void *context, size_t index, int thread)
{
    (void)thread;
    const wave *w = context;
    (w->dense ? multiply_dense : multiply_sparse)(w, index / w->bundles, index % w->bundles);
    return DICE_OK;
}

/* Logits that are being reduced. */
typedef struct reduction {
    const dice_linear *linear;
    const float *logits; /* (n, M) */
    size_t n;
    dice_linear_outputs out;
} reduction;

static dice_status reduce(void *context, size_t task, int thread)
{
    (void)thread;
    const reduction *r = context;
    const size_t classes = r->linear->classes;
    for (size_t i = task * REDUCE_IMAGES; i < dice_least(r->n, (task + 1) * REDUCE_IMAGES); i++) {
        const float *z = r->logits + i * classes;
        float max;
        double sum;
        r->linear->kernels->reduce(z, classes, &max, &sum);
        if (r->out.energy != NULL) {
            r->out.energy[i] = (double)max + log(sum);
        }
        if (r->out.msp != NULL) {
            r->out.msp[i] = 1 / sum;
        }
        if (r->out.maxlogit != NULL) {
            r->out.maxlogit[i] = (double)max;
        }
        if (r->out.label != NULL) {
            int32_t label = 0;
            while (z[label] != max) {
                label++;
            }
            r->out.label[i] = label;
        }
    }
    return DICE_OK;
}

dice_status dice_linear_reduce(const dice_linear *linear, const float *z, size_t n,
                               const dice_linear_outputs *outputs)
{
    reduction r = {linear, z, n, *outputs};
    const int wanted = r.out.energy || r.out.msp || r.out.maxlogit || r.out.label;
    return wanted ? dice_parallel_for(dice_ceil_div(n, REDUCE_IMAGES), reduce, &r) : DICE_OK;
}

/* Whether the dense layout is to be used for n images: it is the faster one, or the only one. */
static int prefers_dense(const dice_linear *linear, size_t n)
{
    return linear->begin == NULL
        || (linear->dense != NULL
            && (double)dice_ceil_div(n, 4) < sparse_cost * linear->density * (double)dice_ceil_div(n, 16));
}

dice_status dice_linear_forward(dice_linear *linear, const float *h, size_t n, float clip,
                                const dice_linear_outputs *outputs)
{
    const int dense = prefers_dense(linear, n);
    const size_t panels = dense ? dice_ceil_div(linear->classes, DENSE_PANEL) : linear->panels;
    const size_t lanes = n > 16 && linear->kernels->sparse[2] != NULL ? 32 : 16;
    const size_t bundle_floats = lanes * (linear->features + (outputs->logits == NULL ? linear->classes : 0));
    const size_t most = 1 + WAVE_BYTES / sizeof(float) / bundle_floats;
    const size_t bundles = dice_least(most, dice_ceil_div(n, lanes));
    void *scratch;
    dice_status status = dice_alloc(bundles, bundle_floats * sizeof(float), &scratch);
    for (size_t first = 0; status == DICE_OK && first < n; first += bundles * lanes) {
        wave w = {.linear = linear,
                  .h = h + first * linear->features,
                  .n = dice_least(n - first, bundles * lanes),
                  .lanes = lanes,
                  .dense = dense,
                  .clip = clip,
                  .packed = scratch};
        const dice_linear_outputs reduced = {.energy = outputs->energy ? outputs->energy + first : NULL,
                                             .msp = outputs->msp ? outputs->msp + first : NULL,
                                             .maxlogit = outputs->maxlogit ? outputs->maxlogit + first : NULL,
                                             .label = outputs->label ? outputs->label + first : NULL};
        w.bundles = dice_ceil_div(w.n, lanes);
        w.logits = outputs->logits != NULL ? outputs->logits + first * linear->classes
                                           : w.packed + bundles * lanes * linear->features;
        status = dice_parallel_for(w.bundles, pack_bundle, &w);
        if (status == DICE_OK) {
            status = dice_parallel_for(w.bundles * panels, multiply, &w);
        }
        if (status == DICE_OK) {
            status = dice_linear_reduce(linear, w.logits, w.n, &reduced);
        }
    }
    dice_free(scratch);
    return status;
}

const char *dice_linear_info(const dice_linear *linear, size_t *bytes)
{
    *bytes = linear->bytes;
    return linear->begin == NULL ? "dense" : linear->dense == NULL ? "sparse" : "both";
}
