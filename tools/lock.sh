#!/bin/sh
# Write constraints.txt: every version that a fresh install of chiasm with all extras gets.
# torch stays at the version that is asked for here, without its build suffix (+cpu, +cu…), so
# that each machine takes the build its own index offers.
set -eu
torch="${TORCH:-2.13.0}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -qq "torch==$torch" --editable '.[dev]'
{
    echo "# Every version, pinned. Written by \`make constraints\`; do not edit by hand."
    "$work/venv/bin/python" -m pip freeze --exclude-editable | sed -E 's/^(torch==[^+]*)\+.*/\1/'
} > constraints.txt
wc -l < constraints.txt
