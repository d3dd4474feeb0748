/* The tile multiply on AMX: 32 pixels x 32 outputs in four registers, float32 as sums of bfloat16 parts.
 *
 * A float32 x is hi + mid + lo, each a bfloat16. One product (hi hi) is the precision bf16; three (+ hi mid +
 * mid hi) are bf16x3; six (+ mid mid + hi lo + lo hi) are as accurate as float32. The products of a pair of
 * blocks are ordered so that each but the first loads one new operand, two registers: seven loads for six
 * products, four for three. */
#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/kernels/amx.h"
#include "cpu/kernels/vec16.h"

/* to (16, 2) = the bfloat16 values of two vectors that are rounded already. */
static inline void store_pair(uint16_t *to, vec16 first, vec16 second)
{
    const __m512i lower = _mm512_srli_epi32(_mm512_castps_si512(first), 16);
    _mm512_storeu_si512(to, _mm512_or_si512(lower, _mm512_castps_si512(second)));
}

static void amx_split(const float *a, int lanes_a, const float *b, int lanes_b, int32_t rows, int parts,
                      size_t room, uint16_t *to)
{
    const __mmask16 mask_a = (__mmask16)((1u << lanes_a) - 1), mask_b = (__mmask16)((1u << lanes_b) - 1);
    for (int32_t r = 0; r < rows; r++, to += 32) {
        vec16 x = _mm512_maskz_loadu_ps(mask_a, a + 16 * r);
        vec16 y = _mm512_maskz_loadu_ps(mask_b, b + 16 * r);
        for (int part = 0; part < parts; part++) {
            const vec16 rounded_x = vec16_round_bf16(x), rounded_y = vec16_round_bf16(y);
            store_pair(to + (size_t)part * room * 32, rounded_x, rounded_y);
            x = vec16_sub(x, rounded_x);
            y = vec16_sub(y, rounded_y);
        }
    }
}

/* The registers by number; the intrinsics want literals. */
#define C00 0
#define C01 1
#define C10 2
#define C11 3
#define A0 4
#define A1 5
#define B0 6
#define B1 7

#define LOAD_A(part)                                                                                         \
    AMX_LOAD(A0, a + (size_t)(part) * room * 32, 64);                                                        \
    AMX_LOAD(A1, a + ((size_t)(part) * room + 16) * 32, 64)
#define LOAD_B(part)                                                                                         \
    AMX_LOAD(B0, w + (size_t)(part) * 1024, 64);                                                             \
    AMX_LOAD(B1, w + (size_t)(part) * 1024 + 512, 64)
#define MULTIPLY()                                                                                           \
    AMX_MULTIPLY(C00, A0, B0);                                                                               \
    AMX_MULTIPLY(C01, A0, B1);                                                                               \
    AMX_MULTIPLY(C10, A1, B0);                                                                               \
    AMX_MULTIPLY(C11, A1, B1)

static void amx_tile_32x32(const uint16_t *a, size_t room, int32_t pairs, int parts, const uint16_t *w,
                           const float *bias, float *c)
{
    /* a stride of 0 starts all rows from the bias */
    AMX_LOAD(C00, bias, 0);
    AMX_LOAD(C01, bias + 16, 0);
    AMX_LOAD(C10, bias, 0);
    AMX_LOAD(C11, bias + 16, 0);
    for (int32_t p = 0; p < pairs; p++, a += (size_t)parts * room * 32, w += (size_t)parts * 1024) {
        if (parts == 1) {
            LOAD_A(0);
            LOAD_B(0);
            MULTIPLY();
        } else if (parts == 2) {
            LOAD_A(0);
            LOAD_B(1);
            MULTIPLY(); /* hi mid */
            LOAD_B(0);
            MULTIPLY(); /* hi hi */
            LOAD_A(1);
            MULTIPLY(); /* mid hi */
        } else {
            LOAD_A(0);
            LOAD_B(2);
            MULTIPLY(); /* hi lo */
            LOAD_B(1);
            MULTIPLY(); /* hi mid */
            LOAD_A(1);
            MULTIPLY(); /* mid mid */
            LOAD_B(0);
            MULTIPLY(); /* mid hi */
            LOAD_A(0);
            MULTIPLY(); /* hi hi */
            LOAD_A(2);
            MULTIPLY(); /* lo hi */
        }
    }
    AMX_STORE(C00, c, 64);
    AMX_STORE(C01, c + DICE_TILE_PLANE, 64);
    AMX_STORE(C10, c + 16 * 16, 64);
    AMX_STORE(C11, c + DICE_TILE_PLANE + 16 * 16, 64);
}

const dice_amx_kernels dice_amx_kernels_amx = {
    .begin = amx_begin,
    .end = amx_end,
    .split = amx_split,
    .tile = amx_tile_32x32,
};
