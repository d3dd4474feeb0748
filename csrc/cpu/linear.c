/* linear on a CPU. W is packed once: sparse, dense or both, whichever is faster. A forward call multiplies
 * tiles of images by panels of classes, then reduces the logits of each image. linear_kernels.h has the
 * layouts. */
#include "cpu/linear.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"
#include "cpu/linear_kernels.h"
#include "cpu/kernels.h"

/* Measured (benchmarks/bench_head.py): to multiply 16 images by one weight of the sparse layout takes
 * sparse_cost times as long as to multiply four images by one weight of the dense layout. So for many images
 * the sparse layout is faster where the share of weights kept is below 4 / sparse_cost. */
static const double sparse_cost = 6.8;

enum {
    DENSE_PANEL = 16 * DICE_LINEAR_VECTORS,
    WAVE_BYTES = 2 << 20,  /* of a wave's packed images and logits, which stay in the cache */
    BOTH_BYTES = 16 << 20, /* up to here dense weights are kept too: for few images they are faster */
    REDUCE_IMAGES = 8      /* a task */
};

/* The first group and the first slot of a block of a sparse panel. */
typedef struct block {
    size_t group, slot;
} block;

struct dice_linear {
    const dice_linear_kernels *kernels;
    size_t classes, features;
    size_t bytes;
    double density;        /* share of the weights that stay */
    float *bias;           /* (M) */
    float *dense;          /* (M / 16, D, 16), or NULL */
    size_t panels, blocks; /* sparse: of DICE_LINEAR_PANEL classes; of DICE_LINEAR_SPAN features */
    block *begin;          /* (panels * blocks + 1), the last is the end; NULL: no sparse layout */
    dice_linear_group *groups;
    float *sparse;  /* (slots, 4) */
    uint8_t *index; /* (slots, 4) */
};

void dice_linear_free(dice_linear *linear)
{
    if (linear != NULL) {
        dice_free(linear->bias);
        dice_free(linear->dense);
        dice_free(linear->begin);
        dice_free(linear->groups);
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

/* Groups the panel's classes by their number of weights in a block, most first; returns the number of groups.
 */
static size_t group_block(const packing *p, size_t panel, size_t block_index, dice_linear_group *groups)
{
    const dice_linear *linear = p->linear;
    const size_t first = panel * DICE_LINEAR_PANEL,
                 classes = dice_least(DICE_LINEAR_PANEL, linear->classes - first);
    const size_t d0 = block_index * DICE_LINEAR_SPAN,
                 count = dice_least(DICE_LINEAR_SPAN, linear->features - d0);
    const size_t n_groups = dice_ceil_div(classes, DICE_LINEAR_GROUP);
    size_t place[DICE_LINEAR_SPAN + 2] = {0}; /* counting sort, by falling number */
    uint16_t number[DICE_LINEAR_PANEL] = {0};
    for (size_t m = 0; m < n_groups * DICE_LINEAR_GROUP; m++) {
        for (size_t d = 0; m < classes && d < count; d++) {
            number[m] = (uint16_t)(number[m] + stays(p, (first + m) * linear->features + d0 + d));
        }
        place[DICE_LINEAR_SPAN - number[m] + 1]++;
    }
    for (size_t i = 1; i <= DICE_LINEAR_SPAN; i++) {
        place[i] += place[i - 1];
    }
    for (size_t m = 0; m < n_groups * DICE_LINEAR_GROUP; m++) {
        const size_t at = place[DICE_LINEAR_SPAN - number[m]]++;
        dice_linear_group *group = groups + at / DICE_LINEAR_GROUP;
        group->row[at % DICE_LINEAR_GROUP] = (uint8_t)m;
        if (at % DICE_LINEAR_GROUP == 0) {
            group->slots = number[m];
        }
    }
    return n_groups;
}

/* Pass 1 of packing: begin[i] = how many groups and slots block i holds. */
static dice_status size_panel(void *context, size_t panel, int thread)
{
    (void)thread;
    const packing *p = context;
    dice_linear *linear = p->linear;
    for (size_t b = 0; b < linear->blocks; b++) {
        dice_linear_group groups[DICE_LINEAR_PANEL / DICE_LINEAR_GROUP];
        block *counts = linear->begin + panel * linear->blocks + b;
        counts->group = group_block(p, panel, b, groups);
        counts->slot = 0;
        for (size_t g = 0; g < counts->group; g++) {
            counts->slot += groups[g].slots;
        }
    }
    return DICE_OK;
}

/* Pass 2 of packing: fills groups and slots. */
static dice_status fill_panel(void *context, size_t panel, int thread)
{
    (void)thread;
    const packing *p = context;
    const dice_linear *linear = p->linear;
    for (size_t b = 0; b < linear->blocks; b++) {
        const block *begin = linear->begin + panel * linear->blocks + b;
        const size_t d0 = b * DICE_LINEAR_SPAN, count = dice_least(DICE_LINEAR_SPAN, linear->features - d0);
        dice_linear_group *groups = linear->groups + begin->group;
        const size_t n_groups = group_block(p, panel, b, groups);
        float *weight = linear->sparse + begin->slot * DICE_LINEAR_GROUP;
        uint8_t *index = linear->index + begin->slot * DICE_LINEAR_GROUP;
        for (size_t g = 0; g < n_groups; g++) {
            const size_t slots = groups[g].slots;
            memset(weight, 0, slots * DICE_LINEAR_GROUP * sizeof *weight);
            memset(index, 0, slots * DICE_LINEAR_GROUP);
            for (size_t lane = 0; lane < DICE_LINEAR_GROUP; lane++) {
                const size_t m = panel * DICE_LINEAR_PANEL + groups[g].row[lane];
                const size_t row = m * linear->features + d0;
                size_t slot = lane;
                for (size_t d = 0; m < linear->classes && d < count; d++) {
                    if (stays(p, row + d)) {
                        weight[slot] = p->weight[row + d];
                        index[slot] = (uint8_t)d;
                        slot += DICE_LINEAR_GROUP;
                    }
                }
            }
            weight += slots * DICE_LINEAR_GROUP;
            index += slots * DICE_LINEAR_GROUP;
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
        total.group += here.group;
        total.slot += here.slot;
    }
    const size_t slots = total.slot * DICE_LINEAR_GROUP;
    if ((status = dice_alloc(slots, sizeof *linear->sparse, &memory)) != DICE_OK) {
        return status;
    }
    linear->sparse = memory;
    if ((status = dice_alloc(slots, sizeof *linear->index, &memory)) != DICE_OK) {
        return status;
    }
    linear->index = memory;
    if ((status = dice_alloc(total.group, sizeof *linear->groups, &memory)) != DICE_OK) {
        return status;
    }
    linear->groups = memory;
    linear->bytes += slots * (sizeof *linear->sparse + sizeof *linear->index)
                   + total.group * sizeof *linear->groups + (all_blocks + 1) * sizeof *linear->begin;
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
    linear->blocks = dice_ceil_div(features, DICE_LINEAR_SPAN);
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
    const float *h;         /* (n, D) */
    size_t n, lanes, tiles; /* images, images to a tile, tiles */
    int dense;
    float clip;
    float *packed; /* (tiles, D, lanes) */
    float *logits; /* (n, M) */
} wave;

static size_t images_of(const wave *w, size_t tile)
{
    return dice_least(w->lanes, w->n - tile * w->lanes);
}

/* The last tile may be narrower. */
static size_t lanes_of(const wave *w, size_t tile)
{
    const size_t images = images_of(w, tile);
    return images == 1 && !w->dense ? 1 : images <= 16 ? 16 : w->lanes;
}

static dice_status pack_tile(void *context, size_t tile, int thread)
{
    (void)thread;
    const wave *w = context;
    const size_t features = w->linear->features;
    w->linear->kernels->pack(w->packed + tile * w->lanes * features, lanes_of(w, tile),
                             w->h + tile * w->lanes * features, images_of(w, tile), features, w->clip);
    return DICE_OK;
}

static void multiply_sparse(const wave *w, size_t panel, size_t tile)
{
    const dice_linear *linear = w->linear;
    const size_t first = panel * DICE_LINEAR_PANEL,
                 classes = dice_least(DICE_LINEAR_PANEL, linear->classes - first);
    const size_t lanes = lanes_of(w, tile);
    _Alignas(64) float z[DICE_LINEAR_PANEL * DICE_LINEAR_IMAGES];
    for (size_t m = 0; m < dice_round_up(classes, DICE_LINEAR_GROUP); m++) {
        const float bias = m < classes ? linear->bias[first + m] : 0;
        for (size_t i = 0; i < lanes; i++) {
            z[m * lanes + i] = bias;
        }
    }
    const float *ht = w->packed + tile * w->lanes * linear->features;
    for (size_t b = 0; b < linear->blocks; b++) {
        const block *begin = linear->begin + panel * linear->blocks + b;
        linear->kernels->sparse[lanes / 16](ht + b * DICE_LINEAR_SPAN * lanes, linear->groups + begin->group,
                                            begin[1].group - begin->group,
                                            linear->sparse + begin->slot * DICE_LINEAR_GROUP,
                                            linear->index + begin->slot * DICE_LINEAR_GROUP, z);
    }
    linear->kernels->unpack(w->logits + tile * w->lanes * linear->classes + first, linear->classes, z, lanes,
                            images_of(w, tile), classes);
}

static void multiply_dense(const wave *w, size_t panel, size_t tile)
{
    const dice_linear *linear = w->linear;
    const size_t first = panel * DENSE_PANEL, classes = dice_least(DENSE_PANEL, linear->classes - first);
    const size_t n = images_of(w, tile), lanes = lanes_of(w, tile), stride = 16 * linear->features;
    _Alignas(64) float z[DICE_LINEAR_IMAGES * DENSE_PANEL], bias[DENSE_PANEL] = {0};
    memcpy(bias, linear->bias + first, classes * sizeof *bias);
    for (size_t i = 0; i < lanes; i++) {
        memcpy(z + i * DENSE_PANEL, bias, sizeof bias);
    }
    const float *ht = w->packed + tile * w->lanes * linear->features;
    for (size_t d = 0; d < linear->features; d += DICE_LINEAR_SPAN) {
        linear->kernels->dense(ht + d * lanes, lanes, n, linear->dense + first * linear->features + 16 * d,
                               stride, (int)dice_ceil_div(classes, 16),
                               dice_least(DICE_LINEAR_SPAN, linear->features - d), z);
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(w->logits + (tile * w->lanes + i) * linear->classes + first, z + i * DENSE_PANEL,
               classes * sizeof *z);
    }
}

/* Tiles of one panel follow each other, so that its weights stay in the cache. */
static dice_status multiply(void *context, size_t index, int thread)
{
    (void)thread;
    const wave *w = context;
    (w->dense ? multiply_dense : multiply_sparse)(w, index / w->tiles, index % w->tiles);
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
    const size_t tile_floats = lanes * (linear->features + (outputs->logits == NULL ? linear->classes : 0));
    const size_t most = 1 + WAVE_BYTES / sizeof(float) / tile_floats;
    const size_t tiles = dice_least(most, dice_ceil_div(n, lanes));
    void *scratch;
    dice_status status = dice_alloc(tiles, tile_floats * sizeof(float), &scratch);
    for (size_t first = 0; status == DICE_OK && first < n; first += tiles * lanes) {
        wave w = {.linear = linear,
                  .h = h + first * linear->features,
                  .n = dice_least(n - first, tiles * lanes),
                  .lanes = lanes,
                  .dense = dense,
                  .clip = clip,
                  .packed = scratch};
        const dice_linear_outputs reduced = {.energy = outputs->energy ? outputs->energy + first : NULL,
                                             .msp = outputs->msp ? outputs->msp + first : NULL,
                                             .maxlogit = outputs->maxlogit ? outputs->maxlogit + first : NULL,
                                             .label = outputs->label ? outputs->label + first : NULL};
        w.tiles = dice_ceil_div(w.n, lanes);
        w.logits = outputs->logits != NULL ? outputs->logits + first * linear->classes
                                           : w.packed + tiles * lanes * linear->features;
        status = dice_parallel_for(w.tiles, pack_tile, &w);
        if (status == DICE_OK) {
            status = dice_parallel_for(w.tiles * panels, multiply, &w);
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
