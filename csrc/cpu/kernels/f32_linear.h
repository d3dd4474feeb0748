/* The kernels of linear, for one instruction set. Included by f32_linear_<isa>.c.
 *
 * Every logit is the bias plus the sums of the blocks, in the order of the features; the sum of a block is a
 * chain of fused multiply-adds over its DICE_LINEAR_BLOCK features. This holds for either layout of the
 * weights and for every tile and instruction set. So an image's bits are always the same, and a weight of 0
 * may be left out or kept. */
#include <string.h>

#include "base/exp8.h"
#include "cpu/linear_kernels.h"
#include "cpu/kernels/vec16.h"

/* y = the transpose of x, 8 x 8. */
INLINE void transpose8(const __m256 x[8], __m256 y[8])
{
    __m256 pair[8], fours[8];
    for (int i = 0; i < 4; i++) {
        pair[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        pair[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        fours[4 * i + 0] = _mm256_shuffle_ps(pair[4 * i], pair[4 * i + 2], 0x44);
        fours[4 * i + 1] = _mm256_shuffle_ps(pair[4 * i], pair[4 * i + 2], 0xee);
        fours[4 * i + 2] = _mm256_shuffle_ps(pair[4 * i + 1], pair[4 * i + 3], 0x44);
        fours[4 * i + 3] = _mm256_shuffle_ps(pair[4 * i + 1], pair[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x20);
        y[4 + i] = _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x31);
    }
}

/* to (D, lanes) = min(h, clip)' of the n images h (n, D); lanes past n are 0. */
static void linear_pack(float *to, size_t lanes, const float *h, size_t n, size_t features, float clip)
{
    if (lanes == 1) {
        for (size_t d = 0; d < features; d++) {
            to[d] = h[d] > clip ? clip : h[d];
        }
        return;
    }
    const __m256 most = _mm256_set1_ps(clip);
    const size_t whole = features / 8 * 8;
    for (size_t image = 0; image < lanes; image += 8) {
        for (size_t d = 0; d < whole; d += 8) {
            __m256 x[8], y[8];
            for (size_t i = 0; i < 8; i++) {
                x[i] = image + i < n ? _mm256_min_ps(_mm256_loadu_ps(h + (image + i) * features + d), most)
                                     : _mm256_setzero_ps();
            }
            transpose8(x, y);
            for (size_t i = 0; i < 8; i++) {
                _mm256_storeu_ps(to + (d + i) * lanes + image, y[i]);
            }
        }
        for (size_t d = whole; d < features; d++) {
            for (size_t i = image; i < image + 8; i++) {
                const float x = i < n ? h[i * features + d] : 0;
                to[d * lanes + i] = i < n && x > clip ? clip : x;
            }
        }
    }
}

/* logits (n, classes), rows `stride` floats apart, = z (classes, lanes)'. */
static void linear_unpack(float *logits, size_t stride, const float *z, size_t lanes, size_t n,
                          size_t classes)
{
    if (lanes == 1) {
        memcpy(logits, z, classes * sizeof *z);
        return;
    }
    const size_t whole = classes / 8 * 8;
    for (size_t image = 0; image < n; image += 8) {
        for (size_t m = 0; m < whole; m += 8) {
            __m256 x[8], y[8];
            for (size_t i = 0; i < 8; i++) {
                x[i] = _mm256_loadu_ps(z + (m + i) * lanes + image);
            }
            transpose8(x, y);
            for (size_t i = 0; i < 8 && image + i < n; i++) {
                _mm256_storeu_ps(logits + (image + i) * stride + m, y[i]);
            }
        }
        for (size_t m = whole; m < classes; m++) {
            for (size_t i = image; i < image + 8 && i < n; i++) {
                logits[i * stride + m] = z[m * lanes + i];
            }
        }
    }
}

/* One block of features of one panel: z (classes, 16 V) += the quads' sums. Images lie in the lanes. */
INLINE void sparse_block(const float *ht, const dice_linear_quad *quads, size_t n_quads, const float *weight,
                         const uint8_t *index, float *z, const int vectors)
{
    const size_t lanes = 16 * (size_t)vectors;
    for (size_t quad = 0; quad < n_quads; quad++) {
        vec16 sum[DICE_LINEAR_QUAD][2];
        for (int g = 0; g < DICE_LINEAR_QUAD; g++) {
            for (int v = 0; v < vectors; v++) {
                sum[g][v] = vec16_set1(0);
            }
        }
        for (size_t entry = 0; entry < quads[quad].entries; entry++) {
            for (int g = 0; g < DICE_LINEAR_QUAD; g++) {
                const vec16 w = vec16_set1(weight[g]);
                const float *x = ht + index[g] * lanes;
                for (int v = 0; v < vectors; v++) {
                    sum[g][v] = vec16_fma(w, vec16_load(x + 16 * v), sum[g][v]);
                }
            }
            weight += DICE_LINEAR_QUAD;
            index += DICE_LINEAR_QUAD;
        }
        for (int g = 0; g < DICE_LINEAR_QUAD; g++) {
            float *at = z + quads[quad].row[g] * lanes;
            for (int v = 0; v < vectors; v++) {
                vec16_store(at + 16 * v, vec16_add(vec16_load(at + 16 * v), sum[g][v]));
            }
        }
    }
}

/* The same for one image, with scalar instructions. */
static void linear_sparse_one(const float *h, const dice_linear_quad *quads, size_t n_quads,
                              const float *weight, const uint8_t *index, float *z)
{
    for (size_t quad = 0; quad < n_quads; quad++) {
        __m128 sum[DICE_LINEAR_QUAD] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(),
                                        _mm_setzero_ps()};
        for (size_t entry = 0; entry < quads[quad].entries; entry++) {
            for (int g = 0; g < DICE_LINEAR_QUAD; g++) {
                sum[g] = _mm_fmadd_ss(_mm_load_ss(weight + g), _mm_load_ss(h + index[g]), sum[g]);
            }
            weight += DICE_LINEAR_QUAD;
            index += DICE_LINEAR_QUAD;
        }
        for (int g = 0; g < DICE_LINEAR_QUAD; g++) {
            z[quads[quad].row[g]] += _mm_cvtss_f32(sum[g]);
        }
    }
}

static void linear_sparse1(const float *ht, const dice_linear_quad *quads, size_t n_quads,
                           const float *weight, const uint8_t *index, float *z)
{
    sparse_block(ht, quads, n_quads, weight, index, z, 1);
}

#if defined(__AVX512F__)
static void linear_sparse2(const float *ht, const dice_linear_quad *quads, size_t n_quads,
                           const float *weight, const uint8_t *index, float *z)
{
    sparse_block(ht, quads, n_quads, weight, index, z, 2);
}
#endif

/* z (images, 64) += h w, for one block of `count` features and V vectors of classes. Classes lie in the
 * lanes. */
INLINE void dense_tile(const float *ht, size_t lanes, const float *w, size_t w_stride, size_t count, float *z,
                       const int images, const int vectors)
{
    vec16 sum[4][4];
    for (int i = 0; i < images; i++) {
        for (int v = 0; v < vectors; v++) {
            sum[i][v] = vec16_set1(0);
        }
    }
    for (size_t d = 0; d < count; d++) {
        vec16 weight[4];
        for (int v = 0; v < vectors; v++) {
            weight[v] = vec16_load(w + (size_t)v * w_stride + 16 * d);
        }
        for (int i = 0; i < images; i++) {
            const vec16 x = vec16_set1(ht[d * lanes + (size_t)i]);
            for (int v = 0; v < vectors; v++) {
                sum[i][v] = vec16_fma(weight[v], x, sum[i][v]);
            }
        }
    }
    for (int i = 0; i < images; i++) {
        for (int v = 0; v < vectors; v++) {
            float *at = z + 16 * DICE_LINEAR_VECTORS * i + 16 * v;
            vec16_store(at, vec16_add(vec16_load(at), sum[i][v]));
        }
    }
}

/* w (vectors, count, 16), its vectors (1 to 4) w_stride floats apart. */
static void linear_dense(const float *ht, size_t lanes, size_t n, const float *w, size_t w_stride,
                         int vectors, size_t count, float *z)
{
    size_t image = 0;
    while (image < n) {
        const int four = n - image > 1;
        for (int v = 0; v < vectors;) {
#if defined(__AVX512F__)
            const int wide = vectors == DICE_LINEAR_VECTORS;
#else
            const int wide = 0;
#endif
            const float *x = ht + image, *from = w + (size_t)v * w_stride;
            float *to = z + image * 16 * DICE_LINEAR_VECTORS + 16 * v;
            if (wide && four) {
                dense_tile(x, lanes, from, w_stride, count, to, 4, DICE_LINEAR_VECTORS);
            } else if (wide) {
                dense_tile(x, lanes, from, w_stride, count, to, 1, DICE_LINEAR_VECTORS);
            } else if (four) {
                dense_tile(x, lanes, from, w_stride, count, to, 4, 1);
            } else {
                dense_tile(x, lanes, from, w_stride, count, to, 1, 1);
            }
            v += wide ? DICE_LINEAR_VECTORS : 1;
        }
        image += four ? 4 : 1;
    }
}

typedef float float8 __attribute__((vector_size(32)));

/* *total += exp(*z - max) */
INLINE void add_exp8(dice_double8 *total, const float8 *z, float max)
{
    dice_double8 x = __builtin_convertvector(*z, dice_double8) - (double)max;
    dice_exp8(&x);
    *total += x;
}

/* *max = the largest of z (m), *sum = sum of exp(z - max). linalg/rows.h does the same for doubles; here the
 * float32 logits are read without a copy, which makes the scores of 1000 classes cheap. */
static void linear_reduce(const float *z, size_t m, float *max, double *sum)
{
    vec16 largest = vec16_set1(z[0]);
    size_t i = 0;
    for (; i + 16 <= m; i += 16) {
        largest = vec16_max(largest, vec16_load(z + i));
    }
    float lanes[16], best = z[0];
    vec16_store(lanes, largest);
    for (int lane = 0; lane < 16; lane++) {
        best = lanes[lane] > best ? lanes[lane] : best;
    }
    for (; i < m; i++) {
        best = z[i] > best ? z[i] : best;
    }
    dice_double8 total = {0};
    float8 z8;
    for (i = 0; i + 8 <= m; i += 8) {
        memcpy(&z8, z + i, sizeof z8);
        add_exp8(&total, &z8, best);
    }
    if (i < m) {
        z8 = (float8){0} - __builtin_inff();
        memcpy(&z8, z + i, (m - i) * sizeof(float));
        add_exp8(&total, &z8, best);
    }
    *max = best;
    *sum = dice_sum8((const double *)&total);
}

#if defined(__AVX512F__)
#define SPARSE_KERNELS {linear_sparse_one, linear_sparse1, linear_sparse2}
#else
#define SPARSE_KERNELS                                                                                       \
    {linear_sparse_one, linear_sparse1, NULL} /* two vectors of images would not fit the registers */
#endif

#define LINEAR(isa)                                                                                          \
    const dice_linear_kernels dice_linear_kernels_##isa = {                                                  \
        .pack = linear_pack,                                                                                 \
        .unpack = linear_unpack,                                                                             \
        .sparse = SPARSE_KERNELS,                                                                            \
        .dense = linear_dense,                                                                               \
        .reduce = linear_reduce,                                                                             \
    }
