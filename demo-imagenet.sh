#!/usr/bin/env bash
# The original's ImageNet experiments in one backbone pass: energy, DICE, ReAct, DICE+ReAct on ResNet-50;
# --arch BiT-S-R101x1: the early version's. Without weights it says what is needed; --random-weights shows the
# whole way, with meaningless numbers.
# --method all: every method of the table, fitted on the training images that are there.
# Further flags as of `dice eval`: --root DIR, --json FILE, --out-datasets ..., --run dice:p=80 ...
exec "$(dirname -- "${BASH_SOURCE[0]}")/tools/run_demo.sh" demo-imagenet "$@"
