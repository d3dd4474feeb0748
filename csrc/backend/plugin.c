/* Opening the CUDA plug-in. See plugin.h. */
#define _GNU_SOURCE
#include "backend/plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/memory.h"

static dice_lock lock = DICE_LOCK_INIT;
static const dice_backend *opened;
static char path[4096], problem[512]; /* file and failure of the plug-in that was tried last */

/* out (size) = the path in DICE_CUDA_PLUGIN, else _cuda.so in the folder of the library of this code. */
static void find_path(char *out, size_t size)
{
    const char *named = getenv("DICE_CUDA_PLUGIN");
    Dl_info self;
    if (named != NULL && named[0] != '\0') {
        snprintf(out, size, "%s", named);
    } else if (dladdr((const void *)&lock, &self) != 0) {
        const char *slash = strrchr(self.dli_fname, '/');
        const int folder = slash == NULL ? 0 : (int)(slash + 1 - self.dli_fname);
        snprintf(out, size, "%.*s_cuda.so", folder, self.dli_fname);
    }
}

/* Opens the plug-in at `path`: sets `opened`, or `problem` where that fails. */
static void open_plugin(void)
{
    static const dice_plugin_core core = {DICE_BACKEND_ABI, dice_fail,      dice_alloc,
                                          dice_free,        dice_plan_make, dice_plan_free};
    opened = NULL;
    if (access(path, F_OK) != 0) {
        snprintf(problem, sizeof problem, "no plug-in");
        return;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    dice_plugin_open open_it = NULL;
    if (library != NULL) {
        /* ISO C has no conversion from an object's pointer to a function's. */
        *(void **)(void *)&open_it = dlsym(library, DICE_PLUGIN_SYMBOL);
    }
    if (open_it == NULL) {
        snprintf(problem, sizeof problem, "the plug-in does not load: %s", dlerror());
        return;
    }
    opened = open_it(&core);
    if (opened == NULL) {
        snprintf(problem, sizeof problem, "the plug-in is of another version of dice");
    }
}

const dice_backend *dice_plugin_cuda(const char **reason, const char **file)
{
    char wanted[sizeof path] = "";
    find_path(wanted, sizeof wanted);
    const int lost = dice_lock_take(&lock);
    if (lost || strcmp(wanted, path) != 0) { /* the first call, or DICE_CUDA_PLUGIN has changed */
        memcpy(path, wanted, sizeof path);
        open_plugin();
    }
    const dice_backend *backend = opened;
    dice_lock_release(&lock);
    *file = path;
    *reason = backend == NULL ? problem : backend->unavailable();
    return *reason == NULL ? backend : NULL;
}
