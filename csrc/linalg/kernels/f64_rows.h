/* The row kernels for one instruction set (see row_kernels.h). Included by f64_rows_<isa>.c.
 *
 * Reductions keep eight partial sums and use no fused multiply-adds, so that every set gives the same bits;
 * products do use them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/exp8.h"
#include "base/sizes.h"
#include "linalg/row_kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8 };

static double rows_max(const double *x, size_t n)
{
    double best[LANES];
    for (int l = 0; l < LANES; l++) {
        best[l] = x[0];
    }
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            best[l] = x[i + (size_t)l] > best[l] ? x[i + (size_t)l] : best[l];
        }
    }
    for (; i < n; i++) {
        best[0] = x[i] > best[0] ? x[i] : best[0];
    }
    for (int l = 1; l < LANES; l++) {
        best[0] = best[l] > best[0] ? best[l] : best[0];
    }
    return best[0];
}

static double rows_exp(const double *x, size_t n, double shift, double scale, double *e)
{
    dice_double8 total = {0}, x8;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        memcpy(&x8, x + i, sizeof x8);
        x8 = (x8 - shift) * scale;
        dice_exp8(&x8);
        total += x8;
        memcpy(e + i, &x8, sizeof x8);
    }
    if (i < n) {
        x8 = (dice_double8){0};
        memcpy(&x8, x + i, (n - i) * sizeof *x);
        x8 = (x8 - shift) * scale;
        for (size_t l = n - i; l < LANES; l++) {
            x8[l] = 0;
        }
        dice_exp8(&x8);
        for (size_t l = n - i; l < LANES; l++) {
            x8[l] = 0;
        }
        total += x8;
        memcpy(e + i, &x8, (n - i) * sizeof *e);
    }
    return dice_sum8((const double *)&total);
}

static double rows_dot(const double *x, const double *y, size_t n)
{
    double sum[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            sum[l] += x[i + (size_t)l] * y[i + (size_t)l];
        }
    }
    for (; i < n; i++) {
        sum[i % LANES] += x[i] * y[i];
    }
    return dice_sum8(sum);
}

static double rows_distance(const double *x, size_t n, double shift, const double *y)
{
    double sum[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n && y != NULL; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            sum[l] += fabs(x[i + (size_t)l] - shift) * y[i + (size_t)l];
        }
    }
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            sum[l] += fabs(x[i + (size_t)l] - shift);
        }
    }
    for (; i < n; i++) {
        sum[i % LANES] += fabs(x[i] - shift) * (y != NULL ? y[i] : 1);
    }
    return dice_sum8(sum);
}

/* The vectors of this set: WIDTH doubles each. The sums of a product's tile are ROWS x 3 of them. */
#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512d vec;
enum { WIDTH = 8, ROWS = 8 };
INLINE vec vec_load(const double *p)
{
    return _mm512_loadu_pd(p);
}
INLINE void vec_store(double *p, vec x)
{
    _mm512_storeu_pd(p, x);
}
INLINE vec vec_set1(double x)
{
    return _mm512_set1_pd(x);
}
INLINE vec vec_fma(vec x, vec y, vec z)
{
    return _mm512_fmadd_pd(x, y, z);
}
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256d vec;
enum { WIDTH = 4, ROWS = 4 };
INLINE vec vec_load(const double *p)
{
    return _mm256_loadu_pd(p);
}
INLINE void vec_store(double *p, vec x)
{
    _mm256_storeu_pd(p, x);
}
INLINE vec vec_set1(double x)
{
    return _mm256_set1_pd(x);
}
INLINE vec vec_fma(vec x, vec y, vec z)
{
    return _mm256_fmadd_pd(x, y, z);
}
#else
typedef double vec __attribute__((vector_size(16)));
enum { WIDTH = 2, ROWS = 4 };
INLINE vec vec_load(const double *p)
{
    return (vec){p[0], p[1]};
}
INLINE void vec_store(double *p, vec x)
{
    p[0] = x[0];
    p[1] = x[1];
}
INLINE vec vec_set1(double x)
{
    return (vec){x, x};
}
INLINE vec vec_fma(vec x, vec y, vec z)
{
    return x * y + z;
}
#endif

INLINE void tile(const int rows, const double *x, size_t x_stride, const double *w, size_t depth, double *out,
                 size_t out_stride)
{
    vec sum[ROWS][3];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++) {
            sum[r][v] = vec_load(out + (size_t)r * out_stride + v * WIDTH);
        }
    }
    for (size_t k = 0; k < depth; k++) {
        vec weight[3];
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++) {
            weight[v] = vec_load(w + k * DICE_ROW_PANEL + v * WIDTH);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const vec value = vec_set1(x[(size_t)r * x_stride + k]);
#pragma GCC unroll 3
            for (int v = 0; v < 3; v++) {
                sum[r][v] = vec_fma(value, weight[v], sum[r][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++) {
            vec_store(out + (size_t)r * out_stride + v * WIDTH, sum[r][v]);
        }
    }
}

static void rows_product(const double *x, size_t x_stride, size_t rows, const double *w, size_t depth,
                         double *out, size_t out_stride)
{
    for (size_t first = 0; first < DICE_ROW_PANEL; first += 3 * WIDTH) {
        size_t r = 0;
        for (; r + ROWS <= rows; r += ROWS) {
            tile(ROWS, x + r * x_stride, x_stride, w + first, depth, out + r * out_stride + first,
                 out_stride);
        }
        for (; r < rows; r++) {
            tile(1, x + r * x_stride, x_stride, w + first, depth, out + r * out_stride + first, out_stride);
        }
    }
}

static void rows_scaled(const double *x, const float *y, size_t n, int absolute, double *v)
{
    for (size_t i = 0; i < n; i++) {
        v[i] = x[i] * (double)y[i];
    }
    for (size_t i = 0; absolute && i < n; i++) {
        v[i] = fabs(v[i]);
    }
}

static void rows_over(const double *x, size_t n, double threshold, uint8_t *keep)
{
    for (size_t i = 0; i < n; i++) {
        keep[i] = x[i] > threshold;
    }
}

static size_t rows_between(const double *x, size_t n, double low, double end, double *inside, size_t *below)
{
    enum { CHUNK = 64 };
    size_t found = 0;
    *below = 0;
    for (size_t first = 0; first < n; first += CHUNK) {
        const size_t count = dice_least(n - first, CHUNK);
        uint8_t in[CHUNK] = {0};
        uint64_t under = 0, any;
        for (size_t i = 0; i < count; i++) {
            under += x[first + i] < low;
        }
        for (size_t i = 0; i < count; i++) {
            in[i] = (x[first + i] >= low) & (x[first + i] < end);
        }
        for (size_t i = 0; i < count; i += sizeof any) {
            memcpy(&any, in + i, sizeof any);
            for (size_t l = i; any != 0 && l < count && l < i + sizeof any; l++) {
                inside[found] = x[first + l];
                found += in[l];
            }
        }
        *below += under;
    }
    return found;
}

#define ROW_KERNELS(isa)                                                                                     \
    const dice_row_kernels dice_row_kernels_##isa = {                                                        \
        .max = rows_max,                                                                                     \
        .exp = rows_exp,                                                                                     \
        .dot = rows_dot,                                                                                     \
        .distance = rows_distance,                                                                           \
        .scaled = rows_scaled,                                                                               \
        .over = rows_over,                                                                                   \
        .between = rows_between,                                                                             \
        .product = rows_product,                                                                             \
    }
