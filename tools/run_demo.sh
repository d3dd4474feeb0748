#!/usr/bin/env bash
# Runs `dice DEMO FLAGS` for the demo scripts; where dice is not installed, sets it up in .venv first.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=python3
stamp=$here/.venv/installed-by-demo

# The current directory may hold the sources without their extension: only an installed dice counts.
path='import sys; sys.path = [p for p in sys.path if p]'
installed() { "$python" -c "$path; import dice._core" >/dev/null 2>&1; }
sources=("$here/csrc" "$here/dice" "$here/CMakeLists.txt")
newer() { find "${sources[@]}" -name '*.[chpt]*' ! -name '*.pyc' -newer "$stamp" -print -quit; }
outdated() { [[ -e $stamp && -n $(newer) ]]; }

if ! installed; then
    python=$here/.venv/bin/python
    if ! installed || outdated; then
        echo "setting dice up in $here/.venv (about a minute)" >&2
        if ! { python3 -m venv "$here/.venv" &&
            "$python" -m pip install --quiet --disable-pip-version-check "$here[plot]" &&
            touch "$stamp"; }; then
            echo "dice: error: the set-up failed, see above; it needs Python 3.10 or newer with venv," \
                "gcc or clang, and a package registry" >&2
            exit 2
        fi
    fi
fi
exec "$python" -c "$path; from dice.cli.main import main; sys.exit(main())" "$@"
