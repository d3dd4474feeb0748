/* Sixteen floats as one value: one AVX-512 register or two AVX2 registers.
 *
 * Kernels are written once over vec16 and compiled for each instruction set; both sets do the same operations
 * in the same order, so they give the same bits. */
#ifndef DICE_CPU_VEC16_H
#define DICE_CPU_VEC16_H

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

typedef __m512 vec16;

INLINE vec16 vec16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
INLINE void vec16_store(float *p, vec16 x)
{
    _mm512_storeu_ps(p, x);
}
INLINE vec16 vec16_set1(float x)
{
    return _mm512_set1_ps(x);
}
INLINE vec16 vec16_add(vec16 x, vec16 y)
{
    return _mm512_add_ps(x, y);
}
INLINE vec16 vec16_sub(vec16 x, vec16 y)
{
    return _mm512_sub_ps(x, y);
}
INLINE vec16 vec16_mul(vec16 x, vec16 y)
{
    return _mm512_mul_ps(x, y);
}
INLINE vec16 vec16_fma(vec16 x, vec16 y, vec16 z)
{
    return _mm512_fmadd_ps(x, y, z);
}
INLINE vec16 vec16_max(vec16 x, vec16 y)
{
    return _mm512_max_ps(x, y);
}
/* Lanes [from, to) only, the others 0 and not touched in memory; 0 <= from <= to <= 16. */
INLINE vec16 vec16_load_lanes(const float *p, int from, int to)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << to) - (1u << from)), p);
}
INLINE void vec16_store_lanes(float *p, vec16 x, int from, int to)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << to) - (1u << from)), x);
}

/* To the nearest bfloat16, ties to even; a finite value stays finite (see base/bf16.h). */
INLINE vec16 vec16_round_bf16(vec16 x)
{
    const __m512i bits = _mm512_castps_si512(x), infinity = _mm512_set1_epi32(0x7f800000);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 overflows = _mm512_cmpeq_epi32_mask(_mm512_and_si512(up, infinity), infinity);
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_mask_mov_epi32(up, overflows, bits), _mm512_set1_epi32((int)0xffff0000u)));
}

#else

typedef struct vec16 {
    __m256 lo, hi;
} vec16;

INLINE vec16 vec16_load(const float *p)
{
    return (vec16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
INLINE void vec16_store(float *p, vec16 x)
{
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
INLINE vec16 vec16_set1(float x)
{
    return (vec16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
INLINE vec16 vec16_add(vec16 x, vec16 y)
{
    return (vec16){_mm256_add_ps(x.lo, y.lo), _mm256_add_ps(x.hi, y.hi)};
}
INLINE vec16 vec16_sub(vec16 x, vec16 y)
{
    return (vec16){_mm256_sub_ps(x.lo, y.lo), _mm256_sub_ps(x.hi, y.hi)};
}
INLINE vec16 vec16_mul(vec16 x, vec16 y)
{
    return (vec16){_mm256_mul_ps(x.lo, y.lo), _mm256_mul_ps(x.hi, y.hi)};
}
INLINE vec16 vec16_fma(vec16 x, vec16 y, vec16 z)
{
    return (vec16){_mm256_fmadd_ps(x.lo, y.lo, z.lo), _mm256_fmadd_ps(x.hi, y.hi, z.hi)};
}
INLINE vec16 vec16_max(vec16 x, vec16 y)
{
    return (vec16){_mm256_max_ps(x.lo, y.lo), _mm256_max_ps(x.hi, y.hi)};
}
/* Of lanes [first, first + 8), those in [from, to). */
INLINE __m256i lanes_mask(int first, int from, int to)
{
    const __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                          _mm256_set1_epi32(first));
    return _mm256_and_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(from - 1)),
                            _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane));
}
INLINE vec16 vec16_load_lanes(const float *p, int from, int to)
{
    return (vec16){_mm256_maskload_ps(p, lanes_mask(0, from, to)),
                   _mm256_maskload_ps(p + 8, lanes_mask(8, from, to))};
}
INLINE void vec16_store_lanes(float *p, vec16 x, int from, int to)
{
    _mm256_maskstore_ps(p, lanes_mask(0, from, to), x.lo);
    _mm256_maskstore_ps(p + 8, lanes_mask(8, from, to), x.hi);
}

INLINE __m256 round_bf16_half(__m256 x)
{
    const __m256i bits = _mm256_castps_si256(x), infinity = _mm256_set1_epi32(0x7f800000);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i overflows = _mm256_cmpeq_epi32(_mm256_and_si256(up, infinity), infinity);
    const __m256i kept = _mm256_blendv_epi8(up, bits, overflows);
    return _mm256_castsi256_ps(_mm256_and_si256(kept, _mm256_set1_epi32((int)0xffff0000u)));
}
INLINE vec16 vec16_round_bf16(vec16 x)
{
    return (vec16){round_bf16_half(x.lo), round_bf16_half(x.hi)};
}

#endif

#endif
