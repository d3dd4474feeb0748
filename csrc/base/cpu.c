/* Run-time detection of instruction sets. See cpu.h. */
#define _GNU_SOURCE
#include "base/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(DICE_HAVE_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const char *const names[] = {"scalar", "avx2", "avx512", "amx"};

#if defined(DICE_HAVE_AMX)
/* A process must ask the operating system once for the 8 KB of AMX's registers; a container may refuse. */
static int amx_permitted(void)
{
#if defined(DICE_AMX_EMULATED)
    return 1;
#elif defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        return 0;
    }
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, avx512_bf16 = 1u << 5;
    if ((edx & amx_bf16) == 0 || (edx & amx_tile) == 0) {
        return 0;
    }
    if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || (eax & avx512_bf16) == 0) {
        return 0;
    }
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}
#endif

/* The build defines DICE_HAVE_... for each set that it has kernels for; other sets are not offered. */
static dice_isa detect(void)
{
    dice_isa isa = DICE_ISA_SCALAR;
#if defined(DICE_HAVE_AVX2)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        isa = DICE_ISA_AVX2;
    }
#endif
#if defined(DICE_HAVE_AVX512)
    if (isa == DICE_ISA_AVX2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        isa = DICE_ISA_AVX512;
    }
#endif
#if defined(DICE_HAVE_AMX)
    if (isa == DICE_ISA_AVX512 && amx_permitted()) {
        isa = DICE_ISA_AMX;
    }
#endif
    return isa;
}

dice_isa dice_isa_native(void)
{
    static atomic_int known = -1;
    int isa = atomic_load(&known);
    if (isa < 0) {
        isa = (int)detect();
        atomic_store(&known, isa);
    }
    return (dice_isa)isa;
}

dice_status dice_isa_select(const char *name, dice_isa *out)
{
    const dice_isa native = dice_isa_native();
    if (name == NULL || name[0] == '\0') {
        name = getenv("DICE_ISA");
    }
    if (name == NULL || name[0] == '\0') {
        *out = native;
        return DICE_OK;
    }
    for (int isa = 0; isa <= DICE_ISA_AMX; isa++) {
        if (strcmp(name, names[isa]) != 0) {
            continue;
        }
        if (isa > (int)native) {
            return dice_fail(DICE_E_INPUT, "DICE_ISA=%s: this machine and build have no more than %s", name,
                             names[native]);
        }
        *out = (dice_isa)isa;
        return DICE_OK;
    }
    return dice_fail(DICE_E_INPUT, "DICE_ISA=%s: not one of scalar, avx2, avx512, amx", name);
}

const char *dice_isa_name(dice_isa isa)
{
    return names[isa];
}
