/* CPU quotas. See quota.h.
 *
 * /proc/self/cgroup names the group by its path in a hierarchy, /proc/self/mountinfo says where the hierarchy
 * is mounted and which part of it: a container often sees its own group at the mount point. */
#define _GNU_SOURCE
#include "base/quota.h"

#if !defined(__linux__)

int dice_quota_processors(const char *root)
{
    (void)root;
    return 0;
}

#else

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One kind of hierarchy. */
typedef struct kind {
    const char *type;       /* of the file system */
    const char *controller; /* that it must have; NULL = the hierarchy of v2, which has them all */
} kind;

static const kind kinds[] = {{"cgroup2", NULL}, {"cgroup", "cpu"}};

/* Whether `word` is one of the words of `list`, which commas part. */
static int has_word(const char *list, const char *word)
{
    const size_t length = strlen(word);
    for (const char *at = list; at != NULL; at = strchr(at, ','), at = at == NULL ? NULL : at + 1) {
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == '\0')) {
            return 1;
        }
    }
    return 0;
}

/* Opens the file whose name is that of `folder` and `name`. */
static FILE *open_file(const char *folder, const char *name)
{
    char path[PATH_MAX];
    const int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    return length < 0 || (size_t)length >= sizeof path ? NULL : fopen(path, "re");
}

/* The processors that the group of `folder` alone may use, INFINITY where it has no quota. */
static double own_quota(const char *folder, const kind *k)
{
    double quota = -1, period = 0;
    FILE *file = open_file(folder, k->controller == NULL ? "cpu.max" : "cpu.cfs_quota_us");
    if (file == NULL) {
        return INFINITY;
    }
    int found = fscanf(file, "%lf %lf", &quota, &period); /* without a quota v2 says "max", v1 says -1 */
    fclose(file);
    if (k->controller != NULL && found == 1) {
        file = open_file(folder, "cpu.cfs_period_us");
        found += file == NULL ? 0 : fscanf(file, "%lf", &period) == 1;
        if (file != NULL) {
            fclose(file);
        }
    }
    return found == 2 && quota > 0 && period > 0 ? quota / period : INFINITY;
}

/* The smallest quota from the group of `folder` up to the one of its first `top` bytes, the mount point. */
static double smallest_quota(char *folder, size_t top, const kind *k)
{
    double least = INFINITY;
    for (;;) {
        const double quota = own_quota(folder, k);
        least = quota < least ? quota : least;
        char *slash = strrchr(folder, '/');
        if (slash == NULL || slash < folder + top) {
            return least;
        }
        *slash = '\0';
    }
}

/* Whether a line of /proc/self/cgroup, "number:controllers:path", is that of the kind's hierarchy; *path is
 * then the path in it. */
static int is_group(char *line, const kind *k, const char **path)
{
    char *controllers = strchr(line, ':');
    char *group = controllers == NULL ? NULL : strchr(controllers + 1, ':');
    if (group == NULL) {
        return 0;
    }
    *group = '\0';
    *path = group + 1;
    return k->controller == NULL ? controllers[1] == '\0' : has_word(controllers + 1, k->controller);
}

/* Takes a name out of /proc/self/mountinfo, where blanks and backslashes are written \ooo. */
static void unescape(char *text)
{
    char *out = text;
    for (const char *in = text; *in != '\0'; out++) {
        unsigned code;
        if (in[0] == '\\' && sscanf(in, "\\%3o", &code) == 1) {
            *out = (char)code;
            in += 4;
        } else {
            *out = *in++;
        }
    }
    *out = '\0';
}

/* Whether a line of /proc/self/mountinfo is that of a mounted hierarchy of the kind; *part and *place are
 * then the part of it that is mounted, and where. The line ends in "- type source options". */
static int is_mount(char *line, const kind *k, char **part, char **place)
{
    char *rest = strstr(line, " - ");
    if (rest == NULL) {
        return 0;
    }
    *rest = '\0';
    char type[32], options[256] = "";
    if (sscanf(rest + 3, "%31s %*s %255s", type, options) < 1 || strcmp(type, k->type) != 0
        || (k->controller != NULL && !has_word(options, k->controller))) {
        return 0;
    }
    char *save = NULL;
    char *field = strtok_r(line, " ", &save);
    for (int i = 0; i < 3 && field != NULL; i++) {
        field = strtok_r(NULL, " ", &save);
    }
    *part = field;
    *place = strtok_r(NULL, " ", &save);
    if (*part == NULL || *place == NULL) {
        return 0;
    }
    unescape(*part);
    unescape(*place);
    return 1;
}

/* The path of a group below the part of the hierarchy that is mounted; "" where it is not in it. */
static const char *below(const char *group, const char *part)
{
    const size_t length = strcmp(part, "/") == 0 ? 0 : strlen(part);
    const int inside = strncmp(group, part, length) == 0 && (group[length] == '/' || group[length] == '\0');
    return !inside || strncmp(group, "/..", 3) == 0 || strcmp(group + length, "/") == 0 ? "" : group + length;
}

/* The smallest quota of a group in the mounted hierarchies of its kind. */
static double mounted_quota(const char *root, const char *group, const kind *k)
{
    FILE *file = open_file(root, "proc/self/mountinfo");
    if (file == NULL) {
        return INFINITY;
    }
    double least = INFINITY;
    char *line = NULL, *part, *place;
    size_t room = 0;
    while (getline(&line, &room, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        if (is_mount(line, k, &part, &place)) {
            char folder[PATH_MAX];
            const int length = snprintf(folder, sizeof folder, "%s%s%s", root, place, below(group, part));
            if (length >= 0 && (size_t)length < sizeof folder) {
                const double quota = smallest_quota(folder, strlen(root) + strlen(place), k);
                least = quota < least ? quota : least;
            }
        }
    }
    free(line);
    fclose(file);
    return least;
}

int dice_quota_processors(const char *root)
{
    FILE *file = open_file(root, "proc/self/cgroup");
    if (file == NULL) {
        return 0;
    }
    double least = INFINITY;
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
            const char *group;
            char copy[PATH_MAX];
            snprintf(copy, sizeof copy, "%s", line);
            if (is_group(copy, &kinds[i], &group)) {
                const double quota = mounted_quota(root, group, &kinds[i]);
                least = quota < least ? quota : least;
            }
        }
    }
    free(line);
    fclose(file);
    return least >= INT_MAX ? 0 : (int)ceil(least);
}

#endif
