"""The op of op.py on the CPU back end: one kernel, for every instruction set."""

from recipes.addition import Addition, Edit, tests

KERNELS, LAYERS, RUN = "csrc/cpu/kernels.h", "csrc/cpu/kernels/f32_layers.h", "csrc/cpu/run.c"

ADDITION = Addition(
    recipe="An op on the CPU",
    edits=[
        Edit(
            KERNELS,
            "    /* Computes channels [c0, c1) of the one pixel of y; both ends are multiples of a block,",
            before="""    /* Rows [y0, y1) of y. */
    void (*absolute)(const dice_view *x, const dice_view *y, int32_t y0, int32_t y1);

""",
        ),
        Edit(
            LAYERS,
            "static void global_mean(const dice_view *x,",
            before="""static void absolute(const dice_view *x, const dice_view *y, int32_t y0, int32_t y1)
{
    const vec16 zero = vec16_set1(0.0f);
    for (int32_t channel = 0; channel < x->channels; channel += 16) {
        for (int32_t iy = y0; iy < y1; iy++) {
            for (int32_t ix = 0; ix < x->width; ix++) {
                const vec16 value = load_channels(x, channel, iy * x->pitch + ix * 16);
                store_channels(y, channel, iy * y->pitch + ix * 16, vec16_max(value, vec16_sub(zero, value)));
            }
        }
    }
}

""",
        ),
        Edit(LAYERS, "        .avgpool = avgpool,", before="        .absolute = absolute, \\\n"),
        Edit(
            RUN,
            "/* By kind;",
            before="""static area run_absolute(const dice_cpu_kernels *kernels, const dice_step *step,
                         const dice_view *x, const dice_view *y, share mine)
{
    const area made = rows_of(y, mine);
    (void)step;
    kernels->absolute(x, y, made.y0, made.y1);
    return made;
}

""",
        ),
        Edit(RUN, "    [DICE_OP_GROUPNORM] = run_groupnorm,\n", after="    [DICE_OP_ABS] = run_absolute,\n"),
    ],
    checks=[
        tests("test_ops.py", "abs"),
        [
            "-c",
            """
from op_cases import tensor
from dice import _core
graph = _core.Graph([tensor(3), tensor(3)], [{"kind": "abs", "x": 0, "y": 1}], 0, 1)
sets = ["scalar", "avx2", "avx512", "amx"]
for isa in sets[1 : sets.index(_core.isa_native()) + 1]:
    assert _core.Network(graph, isa=isa).kernels == isa
""",
        ],
    ],
)
