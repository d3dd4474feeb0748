/* Run-time detection of instruction sets. See cpu.h. */
#define _GNU_SOURCE
#include "base/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const char *const names[] = {"scalar", "avx2", "avx512", "amx"};

#if defined(__x86_64__)
/* The tiles' 8 KB of state must be asked for once a process; a container may refuse it. */
static int amx_permitted(void)
{
#if defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        return 0;
    }
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    if ((edx & amx_bf16) == 0 || (edx & amx_tile) == 0) {
        return 0;
    }
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}
#endif

static dice_isa detect(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        return DICE_ISA_SCALAR;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")
        || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return DICE_ISA_AVX2;
    }
    return amx_permitted() ? DICE_ISA_AMX : DICE_ISA_AVX512;
#else
    return DICE_ISA_SCALAR;
#endif
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
            return dice_fail(DICE_E_INPUT, "DICE_ISA=%s: this machine has no more than %s", name, names[native]);
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
