#!/bin/sh
# Resolve the dependencies of the `dev` extra, which holds the others, in a fresh virtual environment and write requirements.lock.
set -eu
torch=2.13.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet "torch==$torch"
$pip freeze >"$work/before"
$pip install --quiet ".[dev]"
if [ "$($pip freeze | grep -i '^torch==')" != "$(grep -i '^torch==' "$work/before")" ]; then
    echo "another package replaced torch==$torch: the lock is left as it was" >&2
    exit 1
fi
$pip check
{
    echo "# Every version of the development environment. Made by 'make lock' (tools/lock.sh): a fresh virtual environment,"
    echo "# torch alone first, then the package with all its extras, then pip freeze without the package itself, without"
    echo "# the local suffix that CPU builds of torch carry, and without the CUDA packages that GPU builds bring."
    $pip freeze --all --exclude npn --exclude pip | sed 's/+[A-Za-z0-9.]*$//' | grep -v -i -E '^(nvidia-|cuda-|triton==)'
} >"$work/lock"
mv "$work/lock" requirements.lock
echo "requirements.lock: $(grep -c '==' requirements.lock) packages"
