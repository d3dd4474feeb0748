#!/usr/bin/env bash
# Fetches the OOD sets of the ImageNet experiment into datasets/ood_datasets: iNaturalist, SUN and Places
# (10,000 images each, curated by the authors) and DTD. Arguments go on to `dice download`: --root DIR, names.
# Run it again after an interruption: it goes on where it stopped. What it fetches from where:
# datasets/README.md.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=python3

# The current directory may hold the sources: only an installed dice counts.
path='import sys; sys.path = [p for p in sys.path if p]'
run() { exec "$python" -c "$path; from dice.cli.main import main; sys.exit(main())" "$@"; }
installed() { (run --version) >/dev/null 2>&1; }

installed || python=$here/.venv/bin/python
if ! installed; then
    echo "dice: error: not installed; run 'pip install $here', or ./demo-cifar.sh," \
        "which sets up $here/.venv" >&2
    exit 2
fi
run download inat sun places dtd "$@"
