#!/bin/sh
# Install what the tests need, and run them: by default all but those on booted boxes.
# Usage: sh tests/run.sh [boxes] [PYTEST ARGUMENT...]
#   sh tests/run.sh                                 all that takes a few minutes, on all processors
#   sh tests/run.sh -k token                        some of that
#   sh tests/run.sh boxes                           on booted boxes, at most four at a time; needs root and debootstrap
#   sh tests/run.sh tests/test_box.py -k purge      some of those, one after the other
#   PYTHON=/opt/python3.7 sh tests/run.sh           with another Python than python3
# pytest, hypothesis and xdist come from a venv below .venv if possible, else (as root) from Debian's packages.
set -eu

PYTHON=${PYTHON:-python3}

say() {
    echo "tests/run.sh: $*"
}

die() {
    say "$*" >&2
    exit 1
}

has_packages() {
    "$1" -c "import pytest, hypothesis, xdist" >/dev/null 2>&1
}

make_venv() {
    say "making $VENV with pytest, hypothesis and xdist"
    "$PYTHON" -m venv --clear "$VENV" >/dev/null 2>&1 &&
        "$VENV/bin/python" -m pip --disable-pip-version-check install -q -r tests/requirements.txt >/dev/null 2>&1 &&
        has_packages "$VENV/bin/python"
}

install_packages() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
    say "cannot make a venv; installing Debian's packages of pytest, hypothesis and xdist"
    apt-get -qq update >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        python3-pytest python3-hypothesis python3-pytest-xdist >/dev/null 2>&1
}

# Set TESTER to a Python that has what the tests need. Debian's packages are for Debian's Python.
find_tester() {
    for TESTER in "$VENV/bin/python" "$PYTHON"; do
        ! has_packages "$TESTER" || return 0
    done
    TESTER=$VENV/bin/python
    ! make_venv || return 0
    rm -rf "$VENV"
    TESTER=/usr/bin/python3
    if [ "$PYTHON" = python3 ]; then
        ! has_packages "$TESTER" || return 0
        ! install_packages || ! has_packages "$TESTER" || return 0
    fi
    die "cannot find or install pytest, hypothesis and xdist for $PYTHON; as root:" \
        "apt-get install python3-venv (or python3-pytest python3-hypothesis python3-pytest-xdist)"
}

names_a_test() {
    for argument; do
        [ ! -e "${argument%%::*}" ] || return 0
    done
    return 1
}

# Print the test modules that boot boxes, which are those that import tests/box.py.
box_modules() {
    grep -lE "^(from box import|import box)\b" tests/test_*.py
}

# Each test process uses one box most of the time.
boxes_at_a_time() {
    processors=$(nproc)
    echo $((processors < 4 ? processors : 4))
}

main() {
    cd "$(dirname "$0")/.."
    command -v "$PYTHON" >/dev/null || die "$PYTHON is not installed; as root: apt-get install python3"
    VENV=.venv/$("$PYTHON" -c "import sys; print('%d.%d' % sys.version_info[:2])")
    find_tester
    say "testing with $("$TESTER" --version) ($TESTER)"
    if [ "${1-}" = boxes ]; then
        shift
        # shellcheck disable=SC2046 # words
        set -- --numprocesses="$(boxes_at_a_time)" --dist=loadgroup $(box_modules) "$@"
    elif ! names_a_test "$@"; then
        # shellcheck disable=SC2046 # words
        set -- --numprocesses=auto $(box_modules | sed s/^/--ignore=/) tests "$@"
    fi
    exec "$TESTER" -m pytest "$@"
}

main "$@"
