#!/usr/bin/env bash
# The original's four evaluations: CIFAR-100 and CIFAR-10, each without sparsity and with p=90, in one pass of
# the backbone each.
# --method all: every method of the table instead, fitted on the training images that are there.
# Flags go on to `dice eval`: --root DIR, --json FILE, --p 70, ...; --strict: never fall back to the embedded
# benchmark.
exec "$(dirname -- "${BASH_SOURCE[0]}")/tools/run_demo.sh" demo-cifar "$@"
