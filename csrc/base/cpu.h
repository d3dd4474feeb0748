/* Which instruction set to use: what this machine offers, or what DICE_ISA asks for. */
#ifndef DICE_BASE_CPU_H
#define DICE_BASE_CPU_H

#include "base/status.h"

typedef enum dice_isa {
    DICE_ISA_SCALAR = 0, /* plain C: the reference, and the only set on other processors than x86-64 */
    DICE_ISA_AVX2,       /* AVX2 + FMA */
    DICE_ISA_AVX512,     /* AVX-512 F, BW, DQ, VL */
    DICE_ISA_AMX         /* the above + AMX with bfloat16, where the operating system permits it */
} dice_isa;

/* The best set that this processor, operating system and build offer. Found once, then remembered. */
dice_isa dice_isa_native(void);

/* *out = the set named `name`: "scalar", "avx2", "avx512" or "amx". Where `name` is NULL or "", the one that
 * the environment variable DICE_ISA names, else the native one. DICE_E_INPUT for an unknown name, or for a
 * set that this machine or build lacks. */
dice_status dice_isa_select(const char *name, dice_isa *out);

const char *dice_isa_name(dice_isa isa);

#endif
