"""The op of op.py on the CUDA back end."""

from recipes.addition import Addition, Edit, tests

NET = "csrc/cuda/net.cu"

ADDITION = Addition(
    recipe="An op on a GPU",
    edits=[
        Edit(
            "csrc/cuda/ops.cu",
            "/* ---- sums over pixels ---- */\n",
            before="""static __global__ void absolute(map x, map y, size_t count)
{
    const size_t i = global_index();
    if (i < count) {
        const size_t pixel = i / size_t(x.channels), channel = i % size_t(x.channels);
        y.data[pixel * size_t(y.ld) + channel] = fabsf(x.data[pixel * size_t(x.ld) + channel]);
    }
}

void absolute_start(map x, map y, int n, cudaStream_t stream)
{
    const size_t count = size_t(n) * area(y) * size_t(y.channels);
    launch(absolute, blocks_for(count), dim3(THREADS), stream, x, y, count);
}

""",
        ),
        Edit(
            "csrc/cuda/kernels.cuh",
            "/* y (N, C) = mean over the pixels of pre(x), summed in double. */\n",
            before="""/* y = |x|. */
void absolute_start(map x, map y, int n, cudaStream_t stream);

""",
        ),
        Edit(NET, "    case DICE_OP_GROUPNORM:\n        return 1;\n", before="    case DICE_OP_ABS:\n"),
        Edit(
            NET,
            "    case DICE_OP_GROUPNORM:\n        norm_start(",
            before="""    case DICE_OP_ABS:
        absolute_start(x, y, s->n, stream);
        break;
""",
        ),
    ],
    checks=[tests("test_cuda.py", "test_op and abs")],
)
