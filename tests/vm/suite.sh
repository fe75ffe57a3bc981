#!/bin/bash
# In the machine or in the namespaces: runs test executables with this system's own containerd and OCI runtimes. boot.sh runs
# it in the project's directory.
#
# usage: suite.sh BIN DIR SKIPS MATRIX PATIENCE CALL...
#
# The programs under test are in BIN. Skips are noted in SKIPS and cells of the matrix in MATRIX, see tests/run.sh; the table of
# MATRIX goes into DIR. PATIENCE is in seconds, as HOLDFAST_TEST_PATIENCE. Each CALL is the name of a test executable in
# target/vm/tests/deps and its arguments, as one word.
set -u

bin=$1
dir=$2
export HOLDFAST_SKIPS_DIR=$PWD/$3 HOLDFAST_MATRIX_DIR=$PWD/$4 HOLDFAST_TEST_PATIENCE=$5
shift 5

# Copies: every page of what lies in the shared directory has to be asked for outside.
cp -a target/vm/tests/. /tests
mkdir -p /tests/bin
for p in containerd-shim-holdfast-v2 holdfast-oci holdfastd holdfast; do
    cp "$bin/$p" /tests/bin/
done
mkdir -p /tests/peers/bin /tests/peers/containerd-2.1/bin /tests/work
for p in runc crun busybox mke2fs containerd ctr containerd-shim-runc-v2; do
    ln -s "$(command -v "$p")" /tests/peers/bin/
done
for p in containerd ctr containerd-shim-runc-v2; do
    ln -s "$(command -v "$p")" /tests/peers/containerd-2.1/bin/
done
# It brings along what it needs.
[ ! -x target/peers/bin/criu ] || ln -s "$PWD/target/peers/bin/criu" /tests/peers/bin/criu

export HOLDFAST_BIN_DIR=/tests/bin HOLDFAST_PEERS_DIR=/tests/peers HOLDFAST_TEST_DIR=/tests/work TMPDIR=/tests/work
export HOLDFAST_TEST_BUSYBOX=/tests/peers/bin/busybox
# The units have their real names here; nobody else's are at stake.
export HOLDFAST_DISPOSABLE_MACHINE=1
failed=0
for call in "$@"; do
    started=$SECONDS
    read -r -a words <<<"$call"
    echo "+ $call"
    "/tests/deps/${words[0]}" "${words[@]:1}" --test-threads 2 || failed=1
    echo "== took $((SECONDS - started)) s"
done
/tests/matrix collect "$HOLDFAST_MATRIX_DIR" "$dir" >/dev/null || failed=1
exit $failed
