/* The last layer on a CPU: packed once, sparse, dense or both, as is faster; then products of tiles of images
 * with panels of classes, then one reduction an image. See head_kernels.h for the layouts. */
#include "cpu/head.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/threads.h"
#include "cpu/head_kernels.h"
#include "cpu/kernels.h"

/* Measured (benchmarks/bench_head.py): 16 images times a weight kept in the sparse layout cost as much as
 * this many times four images times a weight of the dense one. So 4 / sparse_cost is the densest sparse layer
 * that pays. */
static const double sparse_cost = 6.8;

enum {
    DENSE_PANEL = 16 * DICE_HEAD_VECTORS,
    WAVE_BYTES = 2 << 20, /* of packed images and logits that exist at a time: panels of weights pass over a
                             cached lot */
    BOTH_BYTES = 16
        << 20,        /* dense weights up to here are kept beside sparse ones: few images read them faster */
    REDUCE_IMAGES = 8 /* a task */
};

/* Where a block of a sparse panel begins; one more at the end. */
typedef struct block {
    size_t group, slot;
} block;

struct dice_head {
    const dice_head_kernels *kernels;
    size_t classes, features;
    size_t bytes;
    double density;        /* share of the weights that stay */
    float *bias;           /* (M) */
    float *dense;          /* (M / 16, D, 16), or NULL */
    size_t panels, blocks; /* sparse: of DICE_HEAD_PANEL classes; of DICE_HEAD_SPAN features */
    block *begin;          /* (panels * blocks + 1), or NULL where there is no sparse layout */
    dice_head_group *groups;
    float *sparse;  /* (slots, 4) */
    uint8_t *index; /* (slots, 4) */
};

static size_t ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

void dice_head_free(dice_head *head)
{
    if (head != NULL) {
        dice_free(head->bias);
        dice_free(head->dense);
        dice_free(head->begin);
        dice_free(head->groups);
        dice_free(head->sparse);
        dice_free(head->index);
        dice_free(head);
    }
}

/* A layer being packed. */
typedef struct packing {
    dice_head *head;
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
    const size_t features = p->head->features, first = 16 * vector,
                 lanes = least(16, p->head->classes - first);
    float *to = p->head->dense + first * features;
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
static size_t group_block(const packing *p, size_t panel, size_t block_index, dice_head_group *groups)
{
    const dice_head *head = p->head;
    const size_t first = panel * DICE_HEAD_PANEL, classes = least(DICE_HEAD_PANEL, head->classes - first);
    const size_t d0 = block_index * DICE_HEAD_SPAN, count = least(DICE_HEAD_SPAN, head->features - d0);
    const size_t n_groups = ceil_div(classes, DICE_HEAD_GROUP);
    size_t place[DICE_HEAD_SPAN + 2] = {0}; /* counting sort, by falling number */
    uint16_t number[DICE_HEAD_PANEL] = {0};
    for (size_t m = 0; m < n_groups * DICE_HEAD_GROUP; m++) {
        for (size_t d = 0; m < classes && d < count; d++) {
            number[m] = (uint16_t)(number[m] + stays(p, (first + m) * head->features + d0 + d));
        }
        place[DICE_HEAD_SPAN - number[m] + 1]++;
    }
    for (size_t i = 1; i <= DICE_HEAD_SPAN; i++) {
        place[i] += place[i - 1];
    }
    for (size_t m = 0; m < n_groups * DICE_HEAD_GROUP; m++) {
        const size_t at = place[DICE_HEAD_SPAN - number[m]]++;
        dice_head_group *group = groups + at / DICE_HEAD_GROUP;
        group->row[at % DICE_HEAD_GROUP] = (uint8_t)m;
        if (at % DICE_HEAD_GROUP == 0) {
            group->slots = number[m];
        }
    }
    return n_groups;
}

/* Pass 1: groups and their sizes. begin[i] counts what block i holds. */
static dice_status size_panel(void *context, size_t panel, int thread)
{
    (void)thread;
    const packing *p = context;
    dice_head *head = p->head;
    for (size_t b = 0; b < head->blocks; b++) {
        dice_head_group groups[DICE_HEAD_PANEL / DICE_HEAD_GROUP];
        block *counts = head->begin + panel * head->blocks + b;
        counts->group = group_block(p, panel, b, groups);
        counts->slot = 0;
        for (size_t g = 0; g < counts->group; g++) {
            counts->slot += groups[g].slots;
        }
    }
    return DICE_OK;
}

/* Pass 2: the slots. */
static dice_status fill_panel(void *context, size_t panel, int thread)
{
    (void)thread;
    const packing *p = context;
    const dice_head *head = p->head;
    for (size_t b = 0; b < head->blocks; b++) {
        const block *begin = head->begin + panel * head->blocks + b;
        const size_t d0 = b * DICE_HEAD_SPAN, count = least(DICE_HEAD_SPAN, head->features - d0);
        dice_head_group *groups = head->groups + begin->group;
        const size_t n_groups = group_block(p, panel, b, groups);
        float *weight = head->sparse + begin->slot * DICE_HEAD_GROUP;
        uint8_t *index = head->index + begin->slot * DICE_HEAD_GROUP;
        for (size_t g = 0; g < n_groups; g++) {
            const size_t slots = groups[g].slots;
            memset(weight, 0, slots * DICE_HEAD_GROUP * sizeof *weight);
            memset(index, 0, slots * DICE_HEAD_GROUP);
            for (size_t lane = 0; lane < DICE_HEAD_GROUP; lane++) {
                const size_t m = panel * DICE_HEAD_PANEL + groups[g].row[lane];
                const size_t row = m * head->features + d0;
                size_t slot = lane;
                for (size_t d = 0; m < head->classes && d < count; d++) {
                    if (stays(p, row + d)) {
                        weight[slot] = p->weight[row + d];
                        index[slot] = (uint8_t)d;
                        slot += DICE_HEAD_GROUP;
                    }
                }
            }
            weight += slots * DICE_HEAD_GROUP;
            index += slots * DICE_HEAD_GROUP;
        }
    }
    return DICE_OK;
}

static dice_status create_dense(packing *p)
{
    dice_head *head = p->head;
    const size_t vectors = ceil_div(head->classes, 16);
    void *memory;
    const dice_status status = dice_alloc(vectors * 16, head->features * sizeof *head->dense, &memory);
    if (status != DICE_OK) {
        return status;
    }
    head->dense = memory;
    head->bytes += vectors * 16 * head->features * sizeof *head->dense;
    return dice_parallel_for(vectors, pack_dense, p);
}

static dice_status create_sparse(packing *p)
{
    dice_head *head = p->head;
    void *memory;
    head->panels = ceil_div(head->classes, DICE_HEAD_PANEL);
    const size_t all_blocks = head->panels * head->blocks;
    dice_status status = dice_alloc(all_blocks + 1, sizeof *head->begin, &memory);
    if (status != DICE_OK) {
        return status;
    }
    head->begin = memory;
    status = dice_parallel_for(head->panels, size_panel, p);
    if (status != DICE_OK) {
        return status;
    }
    block total = {0, 0};
    for (size_t i = 0; i <= all_blocks; i++) {
        const block here = i < all_blocks ? head->begin[i] : (block){0, 0};
        head->begin[i] = total;
        total.group += here.group;
        total.slot += here.slot;
    }
    const size_t slots = total.slot * DICE_HEAD_GROUP;
    if ((status = dice_alloc(slots, sizeof *head->sparse, &memory)) != DICE_OK) {
        return status;
    }
    head->sparse = memory;
    if ((status = dice_alloc(slots, sizeof *head->index, &memory)) != DICE_OK) {
        return status;
    }
    head->index = memory;
    if ((status = dice_alloc(total.group, sizeof *head->groups, &memory)) != DICE_OK) {
        return status;
    }
    head->groups = memory;
    head->bytes += slots * (sizeof *head->sparse + sizeof *head->index) + total.group * sizeof *head->groups
                 + (all_blocks + 1) * sizeof *head->begin;
    return dice_parallel_for(head->panels, fill_panel, p);
}

dice_status dice_head_create(const float *weight, const float *bias, const uint8_t *keep, size_t classes,
                             size_t features, const dice_options *options, dice_head **out)
{
    void *memory;
    dice_status status = dice_alloc_zero(1, sizeof(dice_head), &memory);
    if (status != DICE_OK) {
        return status;
    }
    dice_head *head = memory;
    head->kernels = dice_cpu_kernels_for(options->isa)->head;
    head->classes = classes;
    head->features = features;
    head->blocks = ceil_div(features, DICE_HEAD_SPAN);
    status = dice_alloc(classes, sizeof *head->bias, &memory);
    if (status == DICE_OK) {
        head->bias = memory;
        memcpy(head->bias, bias, classes * sizeof *bias);
        size_t kept = 0;
        for (size_t i = 0; keep != NULL && i < classes * features; i++) {
            kept += keep[i];
        }
        packing p = {.head = head, .weight = weight, .keep = keep};
        head->density = keep == NULL ? 1 : (double)kept / (double)classes / (double)features;
        const int sparse = head->density * sparse_cost < 4;
        const int small = classes * features <= BOTH_BYTES / sizeof *weight;
        if (sparse) {
            status = create_sparse(&p);
        }
        if (status == DICE_OK && (!sparse || (small && head->density * sparse_cost > 1))) {
            status = create_dense(&p);
        }
    }
    if (status != DICE_OK) {
        dice_head_free(head);
        return status;
    }
    head->bytes += classes * sizeof *bias;
    *out = head;
    return DICE_OK;
}

/* A wave: as many images as the scratch holds. */
typedef struct wave {
    const dice_head *head;
    const float *h;         /* (n, D) */
    size_t n, lanes, tiles; /* images, images to a tile, tiles */
    int dense;
    float clip;
    float *packed;         /* (tiles, D, lanes) */
    float *logits;         /* (n, M) */
    dice_head_outputs out; /* of the wave's images */
} wave;

static size_t images_of(const wave *w, size_t tile)
{
    return least(w->lanes, w->n - tile * w->lanes);
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
    const size_t features = w->head->features;
    w->head->kernels->pack(w->packed + tile * w->lanes * features, lanes_of(w, tile),
                           w->h + tile * w->lanes * features, images_of(w, tile), features, w->clip);
    return DICE_OK;
}

static void multiply_sparse(const wave *w, size_t panel, size_t tile)
{
    const dice_head *head = w->head;
    const size_t first = panel * DICE_HEAD_PANEL, classes = least(DICE_HEAD_PANEL, head->classes - first);
    const size_t lanes = lanes_of(w, tile);
    _Alignas(64) float z[DICE_HEAD_PANEL * DICE_HEAD_IMAGES];
    for (size_t m = 0; m < ceil_div(classes, DICE_HEAD_GROUP) * DICE_HEAD_GROUP; m++) {
        const float bias = m < classes ? head->bias[first + m] : 0;
        for (size_t i = 0; i < lanes; i++) {
            z[m * lanes + i] = bias;
        }
    }
    const float *ht = w->packed + tile * w->lanes * head->features;
    for (size_t b = 0; b < head->blocks; b++) {
        const block *begin = head->begin + panel * head->blocks + b;
        head->kernels->sparse[lanes / 16](
            ht + b * DICE_HEAD_SPAN * lanes, head->groups + begin->group, begin[1].group - begin->group,
            head->sparse + begin->slot * DICE_HEAD_GROUP, head->index + begin->slot * DICE_HEAD_GROUP, z);
    }
    head->kernels->unpack(w->logits + tile * w->lanes * head->classes + first, head->classes, z, lanes,
                          images_of(w, tile), classes);
}

static void multiply_dense(const wave *w, size_t panel, size_t tile)
{
    const dice_head *head = w->head;
    const size_t first = panel * DENSE_PANEL, classes = least(DENSE_PANEL, head->classes - first);
    const size_t n = images_of(w, tile), lanes = lanes_of(w, tile), stride = 16 * head->features;
    _Alignas(64) float z[DICE_HEAD_IMAGES * DENSE_PANEL], bias[DENSE_PANEL] = {0};
    memcpy(bias, head->bias + first, classes * sizeof *bias);
    for (size_t i = 0; i < lanes; i++) {
        memcpy(z + i * DENSE_PANEL, bias, sizeof bias);
    }
    const float *ht = w->packed + tile * w->lanes * head->features;
    for (size_t d = 0; d < head->features; d += DICE_HEAD_SPAN) {
        head->kernels->dense(ht + d * lanes, lanes, n, head->dense + first * head->features + 16 * d, stride,
                             (int)ceil_div(classes, 16), least(DICE_HEAD_SPAN, head->features - d), z);
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(w->logits + (tile * w->lanes + i) * head->classes + first, z + i * DENSE_PANEL,
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

static dice_status reduce(void *context, size_t task, int thread)
{
    (void)thread;
    const wave *w = context;
    const size_t classes = w->head->classes;
    for (size_t i = task * REDUCE_IMAGES; i < least(w->n, (task + 1) * REDUCE_IMAGES); i++) {
        const float *z = w->logits + i * classes;
        float max;
        double sum;
        w->head->kernels->reduce(z, classes, &max, &sum);
        if (w->out.energy != NULL) {
            w->out.energy[i] = (double)max + log(sum);
        }
        if (w->out.msp != NULL) {
            w->out.msp[i] = 1 / sum;
        }
        if (w->out.maxlogit != NULL) {
            w->out.maxlogit[i] = (double)max;
        }
        if (w->out.label != NULL) {
            int32_t label = 0;
            while (z[label] != max) {
                label++;
            }
            w->out.label[i] = label;
        }
    }
    return DICE_OK;
}

/* Which layout is faster for n images; where there is one only, that. */
static int prefers_dense(const dice_head *head, size_t n)
{
    return head->begin == NULL
        || (head->dense != NULL
            && (double)ceil_div(n, 4) < sparse_cost * head->density * (double)ceil_div(n, 16));
}

dice_status dice_head_forward(dice_head *head, const float *h, size_t n, float clip,
                              const dice_head_outputs *outputs)
{
    const int dense = prefers_dense(head, n);
    const size_t panels = dense ? ceil_div(head->classes, DENSE_PANEL) : head->panels;
    const size_t lanes = n > 16 && head->kernels->sparse[2] != NULL ? 32 : 16;
    const size_t tile_floats = lanes * (head->features + (outputs->logits == NULL ? head->classes : 0));
    const size_t most = 1 + WAVE_BYTES / sizeof(float) / tile_floats;
    const size_t tiles = least(most, ceil_div(n, lanes));
    void *scratch;
    dice_status status = dice_alloc(tiles, tile_floats * sizeof(float), &scratch);
    for (size_t first = 0; status == DICE_OK && first < n; first += tiles * lanes) {
        wave w = {.head = head,
                  .h = h + first * head->features,
                  .n = least(n - first, tiles * lanes),
                  .lanes = lanes,
                  .dense = dense,
                  .clip = clip,
                  .packed = scratch,
                  .out = {outputs->energy ? outputs->energy + first : NULL,
                          outputs->msp ? outputs->msp + first : NULL,
                          outputs->maxlogit ? outputs->maxlogit + first : NULL,
                          outputs->label ? outputs->label + first : NULL, NULL}};
        w.tiles = ceil_div(w.n, lanes);
        w.logits = outputs->logits != NULL ? outputs->logits + first * head->classes
                                           : w.packed + tiles * lanes * head->features;
        status = dice_parallel_for(w.tiles, pack_tile, &w);
        if (status == DICE_OK) {
            status = dice_parallel_for(w.tiles * panels, multiply, &w);
        }
        if (status == DICE_OK && (w.out.energy || w.out.msp || w.out.maxlogit || w.out.label)) {
            status = dice_parallel_for(ceil_div(w.n, REDUCE_IMAGES), reduce, &w);
        }
    }
    dice_free(scratch);
    return status;
}

const char *dice_head_info(const dice_head *head, size_t *bytes)
{
    *bytes = head->bytes;
    return head->begin == NULL ? "dense" : head->dense == NULL ? "sparse" : "both";
}
