/* The tile unit (AMX): eight registers of 16 rows x 64 bytes, and C += A B of bfloat16 pairs with float32
 * sums.
 *
 * With DICE_AMX_EMULATED the same operations are done in plain C, so that the kernels can be tested on a
 * machine without the unit. */
#ifndef DICE_CPU_AMX_H
#define DICE_CPU_AMX_H

#include <stdint.h>
#include <string.h>

#if defined(DICE_AMX_EMULATED)

static _Thread_local uint32_t amx_register[8][16][16];

static inline void amx_begin(void)
{
}
static inline void amx_end(void)
{
}

static inline void amx_load_rows(int t, const void *from, long stride)
{
    for (int r = 0; r < 16; r++) {
        memcpy(amx_register[t][r], (const char *)from + r * stride, 64);
    }
}

static inline void amx_store_rows(int t, void *to, long stride)
{
    for (int r = 0; r < 16; r++) {
        memcpy((char *)to + r * stride, amx_register[t][r], 64);
    }
}

/* Denormals count as zero, as in the unit. */
static inline float amx_half(uint32_t pair, int upper)
{
    const uint32_t bits = upper ? pair & 0xffff0000u : pair << 16;
    float value;
    memcpy(&value, &bits, 4);
    return (bits & 0x7f800000u) == 0 ? 0.0f : value;
}

static inline void amx_multiply(int c, int a, int b)
{
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 16; n++) {
            float sum;
            memcpy(&sum, &amx_register[c][m][n], 4);
            for (int k = 0; k < 16; k++) {
                const uint32_t x = amx_register[a][m][k], y = amx_register[b][k][n];
                sum = amx_half(x, 0) * amx_half(y, 0) + sum;
                sum = amx_half(x, 1) * amx_half(y, 1) + sum;
            }
            memcpy(&amx_register[c][m][n], &sum, 4);
        }
    }
}

#define AMX_LOAD(t, from, stride) amx_load_rows(t, from, stride)
#define AMX_STORE(t, to, stride) amx_store_rows(t, to, stride)
#define AMX_MULTIPLY(c, a, b) amx_multiply(c, a, b)

#else

#include <immintrin.h>

/* gcc's _tile_loadconfig tells the compiler that it reads 8 bytes, and its _tile_loadd that it reads none, so
 * the compiler dropped stores to the other bytes or moved them past the load. The loads here are assembler
 * that says what it reads, and the configuration is a constant, which no store has to reach. */

/* Each register has 16 rows of 64 bytes. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} amx_config = {
    .palette = 1,
    .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};
_Static_assert(sizeof amx_config == 64, "ldtilecfg reads 64 bytes");

/* Called at every entry, since other code of the thread may have configured the registers otherwise. */
static inline void amx_begin(void)
{
    __asm__ volatile("ldtilecfg %0" : : "m"(amx_config));
}

static inline void amx_end(void)
{
    _tile_release();
}

#define AMX_LOAD(t, from, stride) AMX_LOAD_TILE(t, from, stride) /* t may be a macro */
#define AMX_LOAD_TILE(t, from, stride)                                                                       \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(from), "r"((long)(stride)) : "memory")
#define AMX_STORE(t, to, stride) _tile_stored(t, to, stride)
#define AMX_MULTIPLY(c, a, b) _tile_dpbf16ps(c, a, b)

#endif

#endif
