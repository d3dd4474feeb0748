"""An op, abs: y = |x|. It is in no fast back end yet, so networks that have it run on the reference."""

from recipes.addition import Addition, Edit, tests

HEADER, GRAPH, REFERENCE = "csrc/nn/graph.h", "csrc/nn/graph.c", "csrc/backend/reference.c"

ADDITION = Addition(
    recipe="An op",
    edits=[
        Edit(
            HEADER,
            "    DICE_OP_GROUPNORM\n} dice_op_kind;",
            instead="    DICE_OP_GROUPNORM,\n    /* y = |x|. */\n    DICE_OP_ABS\n} dice_op_kind;",
        ),
        Edit(HEADER, "DICE_OP_KINDS = DICE_OP_GROUPNORM + 1", instead="DICE_OP_KINDS = DICE_OP_ABS + 1"),
        Edit(GRAPH, '"global_mean", "groupnorm"', after=', "abs"'),
        Edit(
            GRAPH,
            "    case DICE_OP_GROUPNORM:\n        break;\n    }\n    return 1;",
            before="    case DICE_OP_ABS:\n",
        ),
        Edit(
            GRAPH,
            "    case DICE_OP_GLOBAL_MEAN:\n        break;\n    }\n    return 0;",
            before="    case DICE_OP_ABS:\n",
        ),
        Edit(
            REFERENCE,
            "static void run_op(const run *r,",
            before="""static void absolute(map x, map y)
{
    for (size_t i = 0; i < x.channels * x.height * x.width; i++) {
        y.data[i] = fabsf(x.data[i]);
    }
}

""",
        ),
        Edit(
            REFERENCE,
            "        groupnorm(op, x, y);\n        break;\n",
            after="    case DICE_OP_ABS:\n        absolute(x, y);\n        break;\n",
        ),
        Edit("tests/op_cases.py", '    "global_mean": (),\n', after='    "abs": (),\n'),
        Edit(
            "tests/op_cases.py",
            '        Case("groupnorm", 64, 64, (16, 16), groups=32, shift=1000),',
            before="""        *(
            Case("abs", c, c, size, slices=c % 2 == 1)
            for c in (1, 16, 17, 100)
            for size in ((1, 1), (7, 5), (33, 17))
        ),
        Case("abs", 13, 13, (8, 8), scale=1e-40),
""",
        ),
        Edit(
            "tests/test_ops.py",
            '    elif case.kind == "global_mean":\n',
            before="""    elif case.kind == "abs":
        y = np.abs(x)
        size, terms = np.zeros_like(y), 0
""",
        ),
    ],
    checks=[
        tests("test_ops.py", "abs or unique"),
        tests("test_cuda.py", "unknown_devices or (test_op and abs)"),  # the GPU refuses the op: skipped
        [
            "-c",
            """
from op_cases import tensor
from dice import _core
graph = _core.Graph([tensor(3), tensor(3)], [{"kind": "abs", "x": 0, "y": 1}], 0, 1)
assert _core.Network(graph).kernels == "reference"
""",
        ],
    ],
)
