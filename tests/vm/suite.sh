#!/bin/bash
# In the machine or in the namespaces: runs test executables with this system's own containerd and OCI runtimes. boot.sh runs
# it in the project's directory.
#
# usage: suite.sh BIN DIR PATIENCE CALL...
#
# The programs under test are in BIN. Skips are noted in DIR/skips and cells of the matrix in DIR/cells, see tests/run.sh;
# their table goes into DIR. PATIENCE is in seconds, as HOLDFAST_TEST_PATIENCE. Each CALL is the name of a test executable in
# target/vm/tests/deps and its arguments, as one word: each argument a part of the names of tests, of which there must be one.
set -u

bin=$1
dir=$2
export HOLDFAST_SKIPS_DIR=$PWD/$dir/skips HOLDFAST_MATRIX_DIR=$PWD/$dir/cells HOLDFAST_TEST_PATIENCE=$3
shift 3

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
    # Words that match no test's name would pass unseen.
    names=$("/tests/deps/${words[0]}" --list | sed -n 's/: test$//p')
    for word in "${words[@]:1}"; do
        grep -F -- "$word" <<<"$names" >/dev/null || {
            echo "FAILED: no test of ${words[0]} has $word in its name"
            failed=1
        }
    done
    "/tests/deps/${words[0]}" "${words[@]:1}" --test-threads 2 || failed=1
    echo "== took $((SECONDS - started)) s"
done
/tests/matrix collect "$HOLDFAST_MATRIX_DIR" "$dir" >/dev/null || failed=1
exit $failed
