/* Networks on the device.
 *
 * net_create packs and uploads the weights. A forward call cuts its images into waves, which two pipes run
 * in turn. Each pipe has a stream, an arena and pinned memory of its own, so that one uploads while the other
 * computes. The work for a number and size of images is captured once as a CUDA graph. While a wave is under
 * way, nothing is allocated and nothing is waited for. If there is too little memory for a wave, waves are
 * halved; the bits of an image do not depend on that. */
#include <mutex>

#include "gemm.cuh"
#include "kernels.cuh"
#include "device.cuh"
#include "slots.cuh"

enum { PIPES = 2, GRAPHS = 4, MOST_IMAGES = 256, MOST_PIXELS = 1 << 30 }; /* pixels are counted in int */
static const size_t ARENA_GOAL = size_t(1) << 30; /* wanted bytes of activations of a wave */

struct layer { /* where an op's weights are, in bytes from the start of dice_net::weights */
    size_t weight, bias, scale, shift;
    size_t plain; /* unpacked weights, for cuBLAS */
};
static const size_t ABSENT = SIZE_MAX;

struct shape { /* number and size of a wave's images, and what depends on them */
    int n, height, width;
    dice_plan plan;
    size_t per_image;            /* number of features of one image */
    size_t raw, features, bytes; /* offsets in the arena, after the activations, and its size */
    size_t raw_bytes;
    cudaGraphExec_t graph;
};

struct pipe {
    cudaStream_t stream;
    gemm_handle gemm;
    device_buffer arena;
    unsigned char *pinned; /* the host's copy of what lies after the activations in the arena */
    size_t pinned_bytes;
    shape shapes[GRAPHS];
    int next_shape;  /* the one that the next new shape replaces */
    float *features; /* the caller's array for what `pinned` receives; null: nothing is under way */
    const shape *running;
};

struct dice_net {
    std::mutex lock; /* one forward call at a time */
    int device, processors, parts;
    dice_graph graph; /* a copy of tensors and ops; their weight pointers are null */
    layer *layers;    /* (n_ops) */
    device_buffer weights;
    bool library; /* use cuBLAS for plain 1 x 1 convolutions */
    /* Graphs are captured on this stream, which the work of other code on the default stream cannot
     * disturb. */
    cudaStream_t recorder;
    size_t wave; /* images in a wave for the size below, fewer if memory was short */
    int wave_height, wave_width;
    pipe pipes[PIPES];
};

static size_t tensor_bytes(int32_t channels, int32_t height, int32_t width)
{
    return dice_round_up(size_t(channels), 4) * size_t(height) * size_t(width) * sizeof(float);
}

/* ---- create ---- */

static size_t channels_of(const dice_graph *graph, int32_t tensor)
{
    return size_t(graph->tensors[tensor].channels);
}

/* Whether the op is a plain product of pixels and weights, which cuBLAS can compute. */
static bool is_plain(const dice_op *op)
{
    return op->kind == DICE_OP_CONV && op->kernel == 1 && op->stride == 1 && op->pad == 0
        && op->pre_scale == nullptr;
}

static size_t place(carver *c, bool there, size_t bytes)
{
    return there ? c->take(bytes) : ABSENT;
}

/* *l = where the weights of `op` are; where `packed`, the working memory, is given, also packs and uploads
 * them. It is called for all ops without `packed`, to learn the size, then with it, and finds the same
 * places. */
static dice_status put_op(dice_net *net, const dice_graph *graph, const dice_op *op, layer *l, carver *c,
                          void *packed)
{
    const size_t cx = channels_of(graph, op->x), cy = channels_of(graph, op->y);
    const size_t taps = size_t(op->kernel) * size_t(op->kernel);
    const bool is_conv = op->kind == DICE_OP_CONV, library = net->library && is_plain(op);
    const size_t bytes = is_conv ? conv_weight_bytes(net->parts, int(cy), int(cx), op->kernel)
                                 : cy * sizeof(float);
    l->weight = place(c, op->weight != nullptr && !library, bytes);
    l->plain = place(c, library, cy * cx * sizeof(float));
    l->bias = place(c, op->bias != nullptr, cy * sizeof(float));
    l->scale = place(c, op->pre_scale != nullptr, cx * sizeof(float));
    l->shift = place(c, op->pre_scale != nullptr, cx * sizeof(float));
    if (packed == nullptr) {
        return DICE_OK;
    }
    const auto put = [&](size_t at, const void *from, size_t size) {
        return at == ABSENT ? cudaSuccess
                            : cudaMemcpy(net->weights.data + at, from, size, cudaMemcpyHostToDevice);
    };
    const void *weight = op->weight;
    if (is_conv && !library) {
        conv_pack(net->parts, op->weight, nullptr, int(cy), int(cx), int(op->kernel),
                  static_cast<uint16_t *>(packed));
        weight = packed;
    }
    CUDA_TRY(put(l->weight, weight, bytes), op->name);
    CUDA_TRY(put(l->plain, op->weight, cy * cx * taps * sizeof(float)), op->name);
    CUDA_TRY(put(l->bias, op->bias, cy * sizeof(float)), op->name);
    CUDA_TRY(put(l->scale, op->pre_scale, cx * sizeof(float)), op->name);
    CUDA_TRY(put(l->shift, op->pre_shift, cx * sizeof(float)), op->name);
    return DICE_OK;
}

static dice_status put_weights(dice_net *net, const dice_graph *graph, void *packed, size_t *bytes,
                               size_t *largest)
{
    carver c;
    for (int32_t i = 0; i < graph->n_ops; i++) {
        const size_t before = c.used;
        TRY(put_op(net, graph, &graph->ops[i], &net->layers[i], &c, packed));
        *largest = dice_most(*largest, c.used - before);
    }
    *bytes = c.used;
    return DICE_OK;
}

template <typename T> static dice_status copy_array(const T *from, size_t count, T **out)
{
    void *memory;
    TRY(dice_core->alloc(count, sizeof(T), &memory));
    memcpy(memory, from, count * sizeof(T));
    *out = static_cast<T *>(memory);
    return DICE_OK;
}

static dice_status fill(dice_net *net, const dice_graph *graph)
{
    net->graph = *graph;
    net->graph.tensors = nullptr;
    net->graph.ops = nullptr;
    TRY(copy_array(graph->tensors, size_t(graph->n_tensors), &net->graph.tensors));
    TRY(copy_array(graph->ops, size_t(graph->n_ops), &net->graph.ops));
    void *memory;
    TRY(dice_core->alloc(size_t(graph->n_ops), sizeof(layer), &memory));
    net->layers = static_cast<layer *>(memory);

    CUDA_TRY(cudaDeviceGetAttribute(&net->processors, cudaDevAttrMultiProcessorCount, net->device), "device");
    CUDA_TRY(conv_check(), "device");
    CUDA_TRY(cudaStreamCreateWithFlags(&net->recorder, cudaStreamNonBlocking), "stream");
    net->library = net->parts != 2 && gemm_forced();
    for (pipe &l : net->pipes) {
        /* a blocking stream: it waits for earlier work of the default stream */
        CUDA_TRY(cudaStreamCreate(&l.stream), "stream");
        if (net->library) {
            TRY(gemm_open(&l.gemm, net->recorder, false));
        }
    }
    size_t bytes = 0, largest = 0;
    TRY(put_weights(net, graph, nullptr, &bytes, &largest));
    CUDA_TRY(net->weights.reserve(bytes), "weights");
    TRY(dice_core->alloc(largest, 1, &memory));
    const dice_status status = put_weights(net, graph, memory, &bytes, &largest);
    dice_core->free(memory);
    return status;
}

dice_status net_create(const dice_graph *graph, const dice_options *options, dice_net **out)
{
    TRY(device_check(options->device));
    const on_device here(options->device);
    CUDA_TRY(here.error, "device");
    dice_net *net = new (std::nothrow) dice_net();
    if (net == nullptr) {
        return dice_core->fail(DICE_E_MEMORY, "out of memory");
    }
    net->device = options->device;
    net->parts = dice_precision_parts(options->precision);
    const dice_status status = fill(net, graph);
    if (status != DICE_OK) {
        net_free(net);
        return status;
    }
    *out = net;
    return DICE_OK;
}

/* ---- pipes ---- */

static void forget_shape(shape *s)
{
    if (s->graph != nullptr) {
        cudaGraphExecDestroy(s->graph);
    }
    dice_core->plan_free(&s->plan);
    *s = shape();
}

/* Frees the pipe's memory, and the graphs that point into it. */
static void release_pipe(pipe *l)
{
    for (shape &s : l->shapes) {
        forget_shape(&s);
    }
    l->arena.release();
    cudaFreeHost(l->pinned);
    l->pinned = nullptr;
    l->pinned_bytes = 0;
}

void net_free(dice_net *net)
{
    if (net == nullptr || device_is_forked()) {
        return;
    }
    const on_device here(net->device);
    for (pipe &l : net->pipes) {
        release_pipe(&l);
        gemm_close(&l.gemm);
        if (l.stream != nullptr) {
            cudaStreamDestroy(l.stream);
        }
    }
    if (net->recorder != nullptr) {
        cudaStreamDestroy(net->recorder);
    }
    net->weights.release();
    dice_core->free(net->graph.tensors);
    dice_core->free(net->graph.ops);
    dice_core->free(net->layers);
    delete net;
}

void net_info(const dice_net *net, dice_net_info *info)
{
    static const char *const names[2][4] = {{"", "bf16", "bf16x3", "bf16x6"},
                                            {"", "bf16+cublas", "", "bf16x6+cublas"}};
    *info = dice_net_info();
    info->arena_bytes = net->pipes[0].arena.bytes + net->pipes[1].arena.bytes;
    info->weight_bytes = net->weights.bytes;
    info->kernels = names[net->library][net->parts];
}

/* ---- one wave ---- */

static map map_of(const dice_net *net, const pipe *l, const shape *s, int32_t id)
{
    const dice_tensor *t = &net->graph.tensors[id];
    const int channels = t->parent == DICE_NONE ? t->channels : net->graph.tensors[t->parent].channels;
    float *data = reinterpret_cast<float *>(l->arena.data + s->plan.offset[id] * size_t(s->n));
    return {data + t->offset, int(dice_round_up(size_t(channels), 4)), t->channels, s->plan.height[id],
            s->plan.width[id]};
}

static const float *floats_at(const dice_net *net, size_t at)
{
    return at == ABSENT ? nullptr : reinterpret_cast<const float *>(net->weights.data + at);
}

static conv_args conv_of(map x, map y, int n)
{
    conv_args p = {};
    p.x = x.data, p.x_ld = x.ld, p.channels = x.channels, p.height = x.height, p.width = x.width;
    p.y = y.data, p.y_ld = y.ld, p.out_channels = y.channels, p.out_height = y.height, p.out_width = y.width;
    p.kernel = p.stride = 1;
    p.pixels = n * y.height * y.width;
    p.clip = INFINITY;
    return p;
}

int net_takes(dice_op_kind kind)
{
    switch (kind) {
    case DICE_OP_CONV:
    case DICE_OP_MAXPOOL:
    case DICE_OP_AVGPOOL:
    case DICE_OP_GLOBAL_MEAN:
    case DICE_OP_GROUPNORM:
        return 1;
    default:
        return 0;
    }
}

/* Each kind that net_takes names has a case here. */
static dice_status start_op(const dice_net *net, const pipe *l, const shape *s, int32_t index)
{
    const cudaStream_t stream = net->recorder;
    const dice_op *op = &net->graph.ops[index];
    const layer *w = &net->layers[index];
    const map x = map_of(net, l, s, op->x), y = map_of(net, l, s, op->y);
    const float *bias = floats_at(net, w->bias);
    const float *scale = floats_at(net, w->scale), *shift = floats_at(net, w->shift);
    switch (op->kind) {
    case DICE_OP_CONV: {
        const map residual = op->residual == DICE_NONE ? map() : map_of(net, l, s, op->residual);
        if (w->plain != ABSENT) {
            TRY(gemm_floats(&l->gemm, net->parts == 1, x, floats_at(net, w->plain), y, s->n));
            epilogue_start(y, bias, residual.data, residual.ld, op->relu, s->n, stream);
            break;
        }
        conv_args p = conv_of(x, y, s->n);
        p.weight = reinterpret_cast<const uint16_t *>(net->weights.data + w->weight);
        p.bias = bias, p.scale = scale, p.shift = shift;
        p.residual = residual.data, p.residual_ld = residual.ld;
        p.kernel = op->kernel, p.stride = op->stride, p.pad = op->pad, p.relu = op->relu;
        conv_start(net->parts, net->processors, p, stream);
        break;
    }
    case DICE_OP_MAXPOOL:
    case DICE_OP_AVGPOOL:
        pool_start({x, y, op->kernel, op->stride, op->pad, op->kind == DICE_OP_AVGPOOL, op->zero_padded,
                    scale, shift},
                   s->n, stream);
        break;
    case DICE_OP_GLOBAL_MEAN:
        mean_start(x, scale, shift, s->n, y, stream);
        break;
    case DICE_OP_GROUPNORM:
        norm_start({x, y, floats_at(net, w->weight), bias, op->groups, op->relu, op->eps}, s->n, stream);
        break;
    default:
        return dice_core->fail(DICE_E_INTERNAL, "layer %s: no kernel for this op", op->name);
    }
    CUDA_TRY(cudaGetLastError(), op->name);
    return DICE_OK;
}

/* Starts all ops, from the input tensor to the features, which are stored after the activations. */
static dice_status start_ops(const dice_net *net, const pipe *l, const shape *s)
{
    const cudaStream_t stream = net->recorder;
    for (int32_t i = 0; i < net->graph.n_ops; i++) {
        TRY(start_op(net, l, s, i));
    }
    const map output = map_of(net, l, s, net->graph.output);
    unpack_start(output, s->n, reinterpret_cast<float *>(l->arena.data + s->features), stream);
    CUDA_TRY(cudaGetLastError(), "features");
    return DICE_OK;
}

static dice_status capture(const dice_net *net, const pipe *l, shape *s)
{
    /* relaxed, because the first launch of a kernel loads its code, and cuBLAS may allocate then */
    CUDA_TRY(cudaStreamBeginCapture(net->recorder, cudaStreamCaptureModeRelaxed), "graph");
    const dice_status status = start_ops(net, l, s);
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(net->recorder, &graph);
    if (status != DICE_OK || ended != cudaSuccess) {
        if (graph != nullptr) {
            cudaGraphDestroy(graph);
        }
        return status != DICE_OK ? status : cuda_fail(ended, "graph");
    }
    const cudaError_t made = cudaGraphInstantiate(&s->graph, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_TRY(made, "graph");
    return DICE_OK;
}

/* *s = the sizes of a wave of n images. The caller frees s->plan. */
static dice_status measure(const dice_net *net, int n, int height, int width, shape *s)
{
    *s = shape();
    if (size_t(height) * size_t(width) > MOST_PIXELS) {
        return dice_core->fail(DICE_E_INPUT, "images of %d x %d pixels are too large for the device", height,
                               width);
    }
    s->n = n, s->height = height, s->width = width;
    TRY(dice_core->plan_make(&net->graph, height, width, tensor_bytes, &s->plan));
    const int32_t output = net->graph.output;
    s->per_image = channels_of(&net->graph, output) * size_t(s->plan.height[output])
                 * size_t(s->plan.width[output]);
    s->raw_bytes = channels_of(&net->graph, net->graph.input) * size_t(height) * size_t(width)
                 * sizeof(float);
    carver c;
    c.take(s->plan.arena_bytes * size_t(n));
    s->raw = c.take(s->raw_bytes * size_t(n));
    s->features = c.take(s->per_image * sizeof(float) * size_t(n));
    s->bytes = c.used;
    return DICE_OK;
}

/* Makes room for a wave of this shape. If the pipe's memory must grow, its graphs are freed. */
static cudaError_t make_room(pipe *l, const shape *s)
{
    const size_t pinned = s->bytes - s->raw;
    if (s->bytes <= l->arena.bytes && pinned <= l->pinned_bytes) {
        return cudaSuccess;
    }
    release_pipe(l);
    cudaError_t error = l->arena.reserve(s->bytes);
    if (error == cudaSuccess) {
        error = cudaMallocHost(&l->pinned, pinned);
        l->pinned_bytes = error == cudaSuccess ? pinned : 0;
    }
    return error;
}

/* *out = the wave's shape, ready to run on the pipe; null, with DICE_OK and a recorded detail, if there is
 * too little memory for it. */
static dice_status prepare(const dice_net *net, pipe *l, int n, int height, int width, shape **out)
{
    *out = nullptr;
    for (shape &s : l->shapes) {
        if (s.graph != nullptr && s.n == n && s.height == height && s.width == width) {
            *out = &s;
            return DICE_OK;
        }
    }
    shape fresh;
    dice_status status = measure(net, n, height, width, &fresh);
    if (status == DICE_OK) {
        const cudaError_t error = make_room(l, &fresh);
        if (error != cudaSuccess) {
            status = cuda_fail(error, "activations");
            status = error == cudaErrorMemoryAllocation ? DICE_OK : status;
            forget_shape(&fresh);
            return status;
        }
        status = capture(net, l, &fresh);
    }
    if (status != DICE_OK) {
        forget_shape(&fresh);
        return status;
    }
    *out = &l->shapes[l->next_shape];
    l->next_shape = (l->next_shape + 1) % GRAPHS;
    forget_shape(*out);
    **out = fresh;
    return DICE_OK;
}

/* Starts the copy of the features: to the caller's array if the device can reach it, else to `pinned`. */
static cudaError_t hand_out(const dice_net *net, pipe *l, const shape *s, float *features)
{
    const bool direct = lives_on(features, net->device);
    l->features = direct ? nullptr : features;
    return cudaMemcpyAsync(direct ? static_cast<void *>(features) : l->pinned + (s->features - s->raw),
                           l->arena.data + s->features, s->per_image * sizeof(float) * size_t(s->n),
                           cudaMemcpyDefault, l->stream);
}

/* Starts the upload and the computation of images [first, first + s->n); finish() delivers the results. */
static dice_status submit(const dice_net *net, pipe *l, const shape *s, const dice_images *images,
                          size_t first, float *features)
{
    l->running = s;
    l->features = nullptr;
    const map input = map_of(net, l, s, net->graph.input);
    const size_t item = images->bytes != nullptr ? s->raw_bytes / sizeof(float) : s->raw_bytes;
    const void *all = images->bytes != nullptr ? static_cast<const void *>(images->bytes) : images->floats;
    const unsigned char *source = static_cast<const unsigned char *>(all) + first * item;
    const int place = device_of(source, net->device);
    if (place < 0) {
        memcpy(l->pinned, source, item * size_t(s->n));
        source = l->pinned;
    }
    if (place != net->device) {
        CUDA_TRY(cudaMemcpyAsync(l->arena.data + s->raw, source, item * size_t(s->n), cudaMemcpyDefault,
                                 l->stream),
                 "images");
        source = l->arena.data + s->raw;
    }
    if (images->bytes != nullptr) {
        normalisation by;
        memcpy(by.mean, net->graph.mean, sizeof by.mean);
        memcpy(by.std, net->graph.std, sizeof by.std);
        bytes_start(source, by, s->n, input, l->stream);
    } else {
        floats_start(reinterpret_cast<const float *>(source), s->n, input, l->stream);
    }
    CUDA_TRY(cudaGetLastError(), "images");
    CUDA_TRY(cudaGraphLaunch(s->graph, l->stream), "graph");
    CUDA_TRY(hand_out(net, l, s, features), "features");
    return DICE_OK;
}

/* Waits for the pipe's work and copies its results to the caller's array. */
static dice_status finish(pipe *l)
{
    const shape *s = l->running;
    if (s == nullptr) {
        return DICE_OK;
    }
    l->running = nullptr;
    CUDA_TRY(cudaStreamSynchronize(l->stream), "forward");
    if (l->features != nullptr) {
        memcpy(l->features, l->pinned + (s->features - s->raw), s->per_image * sizeof(float) * size_t(s->n));
    }
    return DICE_OK;
}

/* ---- the whole call ---- */

/* Sets net->wave such that the activations of a wave take about ARENA_GOAL bytes. */
static dice_status choose_wave(dice_net *net, int height, int width)
{
    if (net->wave != 0 && net->wave_height == height && net->wave_width == width) {
        return DICE_OK;
    }
    shape one;
    const dice_status status = measure(net, 1, height, width, &one);
    if (status == DICE_OK) {
        const size_t most = ARENA_GOAL / (one.plan.arena_bytes + 1);
        net->wave = dice_least(dice_most(most, 1), MOST_IMAGES);
        net->wave_height = height;
        net->wave_width = width;
    }
    forget_shape(&one);
    return status;
}

static dice_status run_waves(dice_net *net, const dice_images *images, float *features)
{
    TRY(choose_wave(net, images->height, images->width));
    int turn = 0;
    for (size_t first = 0; first < images->n;) {
        pipe *l = &net->pipes[turn];
        TRY(finish(l));
        const size_t n = dice_least(images->n - first, net->wave);
        shape *s;
        TRY(prepare(net, l, int(n), images->height, images->width, &s));
        if (s == nullptr && n == 1 && net->pipes[(turn + 1) % PIPES].arena.bytes == 0) {
            return DICE_E_DEVICE;
        }
        if (s == nullptr) { /* try half as many images, after freeing what the other pipe holds */
            for (pipe &every : net->pipes) {
                TRY(finish(&every));
                release_pipe(&every);
            }
            net->wave = dice_ceil_div(n, 2);
            continue;
        }
        TRY(submit(net, l, s, images, first, features + first * s->per_image));
        first += n;
        turn = (turn + 1) % PIPES;
    }
    for (pipe &l : net->pipes) {
        TRY(finish(&l));
    }
    return DICE_OK;
}

dice_status net_forward(dice_net *net, const dice_images *images, float *features)
{
    TRY(device_check_process(net->device));
    const std::lock_guard<std::mutex> hold(net->lock);
    const on_device here(net->device);
    CUDA_TRY(here.error, "device");
    const dice_status status = run_waves(net, images, features);
    for (pipe &l : net->pipes) {
        if (l.running
            != nullptr) { /* after a failure: nothing may use the caller's arrays after the return */
            cudaStreamSynchronize(l.stream);
            l.running = nullptr;
        }
    }
    return status;
}
