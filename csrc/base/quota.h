/* The CPU quota of the control groups (cgroup v1 and v2) that this process is in: what `docker run --cpus`
 * and Kubernetes' limits set. */
#ifndef DICE_BASE_QUOTA_H
#define DICE_BASE_QUOTA_H

/* The quota in processors, rounded up and at least 1; the smallest of the group's own and of those above it.
 * 0 where there is none, it cannot be read, or the system is not Linux.
 *
 * root: the folder that stands for "/", for tests; else "". */
int dice_quota_processors(const char *root);

#endif
