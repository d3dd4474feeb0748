/* The CPU back end: our fast kernels, chosen by instruction set. */
#include "backend/backend.h"

#include "base/lock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/layout.h"
#include "cpu/linear.h"
#include "cpu/run.h"
#include "cpu/steps.h"

struct dice_net {
    dice_steps steps;
    dice_lock lock; /* of the layout and its memory */
    dice_layout layout;
};

static void net_free(dice_net *net)
{
    if (net != NULL) {
        dice_layout_free(&net->layout);
        dice_steps_free(&net->steps);
        dice_lock_destroy(&net->lock);
        dice_free(net);
    }
}

static dice_status net_create(const dice_graph *graph, const dice_options *options, dice_net **out)
{
    *out = NULL;
    const dice_cpu_kernels *kernels = dice_cpu_kernels_for(options->isa);
    if (kernels == NULL) {
        return dice_fail(DICE_E_INTERNAL, "no fast kernels for %s in this build",
                         dice_isa_name(options->isa));
    }
    void *memory;
    dice_status status = dice_alloc_zero(1, sizeof(dice_net), &memory);
    if (status != DICE_OK) {
        return status;
    }
    dice_net *net = memory;
    dice_lock_init(&net->lock);
    status = dice_steps_init(&net->steps, graph, kernels, dice_precision_parts(options->precision));
    if (status != DICE_OK) {
        net_free(net);
        return status;
    }
    *out = net;
    return DICE_OK;
}

static dice_status net_forward(dice_net *net, const dice_images *images, float *features)
{
    if (dice_lock_take(&net->lock)) {
        net->layout = (dice_layout){0}; /* that of the parent may be half made: its memory is given up */
    }
    dice_status status = dice_layout_make(&net->layout, &net->steps, images->height, images->width,
                                          dice_threads_count());
    if (status == DICE_OK) {
        status = dice_run(&net->steps, &net->layout, images, features);
    }
    dice_lock_release(&net->lock);
    return status;
}

static void net_info(const dice_net *net, dice_net_info *info)
{
    const size_t arena_bytes = net->layout.thread_bytes * (size_t)net->layout.threads;
    *info = (dice_net_info){arena_bytes, net->steps.weight_bytes, net->steps.kernels->name};
}

static const char *net_algorithm(const dice_net *net, int32_t op, const char **layer)
{
    if (op >= net->steps.graph->n_ops) {
        return NULL;
    }
    const dice_step *step = &net->steps.step[op];
    *layer = step->op->name;
    return step->op->kind == DICE_OP_CONV ? step->conv.algorithm->name : dice_op_names[step->op->kind];
}

static const char *unavailable(void)
{
    return dice_cpu_kernels_for(dice_isa_native()) == NULL ? "no fast kernels for this processor" : NULL;
}

const dice_backend dice_backend_cpu = {
    .abi = DICE_BACKEND_ABI,
    .name = "cpu",
    .unavailable = unavailable,
    .net_takes = dice_run_takes,
    .net_create = net_create,
    .net_forward = net_forward,
    .net_info = net_info,
    .net_algorithm = net_algorithm,
    .net_free = net_free,
    .linear_create = dice_linear_create,
    .linear_forward = dice_linear_forward,
    .linear_reduce = dice_linear_reduce,
    .linear_info = dice_linear_info,
    .linear_free = dice_linear_free,
};
