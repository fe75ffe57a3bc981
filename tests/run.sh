#!/bin/bash
# Runs the three rings and judges the result. `make test` calls it; the programs are in bin/, the peers in target/peers.
#
# usage: run.sh [RING...]        default: 1 2 3
#
#   1  pure: unit tests of every crate, and the check that every known trap has its test
#   2  fake runtime: the real shim over a scripted OCI runtime; no root needed
#   3  real: runc, crun, containerd, Docker; root needed
#
# A test file in tests/tests/ belongs to the ring that its first line names ("//! Ring 3: ..."), else to ring 2. A test that
# cannot run here says so through skip() of the harness; each skip must be listed in permitted-skips.txt.
#
# The cells of the matrix (tests/src/matrix.rs) are tests of ring 3. After it their tables are printed and written to
# target/matrix.md, target/matrix-docker.md and target/matrix.tsv, and README.md must show the same; and the same as
# target/live-restore.md, which tests/tests/docker_live_restore.rs writes.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

rings=${*:-1 2 3}
skips=$PWD/target/skips
log=$PWD/target/test.log
rm -rf "$skips"
mkdir -p "$skips"
: >"$log"
export HOLDFAST_SKIPS_DIR=$skips
export HOLDFAST_MATRIX_DIR=$PWD/target/matrix
rm -rf "$HOLDFAST_MATRIX_DIR" target/live-restore.md
mkdir -p "$HOLDFAST_MATRIX_DIR"
failed_runs=()

ring_of() {
    local ring
    ring=$(head -1 "$1" | sed -n 's/^\/\/! Ring \([123]\).*/\1/p')
    echo "${ring:-2}"
}

# The files of a ring of integration tests, those that take longest first.
files_of_ring() {
    local name
    for name in killed growth docker_live_restore pods_under_cri containerd_restart docker; do
        [ "$(ring_of "tests/tests/$name.rs")" != "$1" ] || echo "$name"
    done
    for file in tests/tests/*.rs; do
        [ "$(ring_of "$file")" != "$1" ] || basename "$file" .rs
    done
}

# Daemons of others wait for the disk after each of their many small writes: theirs is in memory, if there are 4 GiB of it.
free=$(df --output=avail /dev/shm 2>/dev/null | tail -1)
if [ -w /dev/shm ] && [ "${free:-0}" -gt $((4 << 20)) ]; then
    export HOLDFAST_TEST_MEMORY=${HOLDFAST_TEST_MEMORY-/dev/shm}
fi

# Who is started in the background ignores the signals of the keyboard, and so does all that he starts: some tests send them.
with_signals=(env --default-signal=HUP,INT,QUIT)
"${with_signals[@]}" true 2>/dev/null || with_signals=()

# One cargo run; its whole output is shown and kept for the count.
run() {
    echo "+ cargo test $*"
    "${with_signals[@]}" cargo test --locked --no-fail-fast "$@" </dev/null 2>&1 | tee -a "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed_runs+=("cargo test $*")
}

# The integration tests of a ring. As many executables at a time as there are processors, each of as many tests: with one
# after another most processors would wait for the last test of each. What one printed is shown when it has ended.
run_ring() {
    local built=target/tests-built.txt names=target/tests-wanted.txt
    echo "+ cargo test -p holdfast-tests --tests --no-run"
    if ! cargo test --locked -p holdfast-tests --tests --no-run </dev/null >"$built" 2>&1; then
        tee -a "$log" <"$built"
        failed_runs+=("cargo test --no-run")
        return
    fi
    files_of_ring "$1" | awk '!seen[$0]++' >"$names"
    rm -f target/tests-failed.txt
    export log built
    # shellcheck disable=SC2016 # for the inner shell
    xargs -P "$(nproc)" -I NAME "${with_signals[@]}" bash -uo pipefail -c '
        program=$(sed -n "s|.*Executable tests/NAME.rs (\(.*\))\$|\1|p" "$built")
        out=$(mktemp target/test-NAME.XXXXXX)
        started=$SECONDS
        "$program" </dev/null >"$out" 2>&1 || echo NAME >>target/tests-failed.txt
        {
            flock 9
            echo "+ $program, $((SECONDS - started)) s"
            cat "$out"
        } 9>>target/tests-built.txt | tee -a "$log"
        rm -f "$out"' <"$names"
    while read -r name; do
        failed_runs+=("tests/tests/$name.rs")
    done < <(cat target/tests-failed.txt 2>/dev/null)
}

for ring in $rings; do
    started=$SECONDS
    case $ring in
    1)
        echo "== ring 1: pure"
        rm -f target/traps.txt
        run --workspace --lib --bins
        run_ring 1
        ;;
    2)
        echo "== ring 2: fake runtime"
        run_ring 2
        ;;
    3)
        echo "== ring 3: real runtimes and managers"
        run_ring 3
        ;;
    *)
        echo "run.sh: no ring $ring" >&2
        exit 2
        ;;
    esac
    echo "== ring $ring took $((SECONDS - started)) s"
done

matrix() {
    cargo run --quiet --locked -p holdfast-tests --bin matrix -- "$@" </dev/null
}
matrix_ok=true
if [[ " $rings " = *" 3 "* ]]; then
    echo "== matrix: behaviour under each containerd, with each OCI runtime"
    matrix collect "$HOLDFAST_MATRIX_DIR" target && matrix check target README.md || matrix_ok=false
fi
# Written by tests/tests/traps.rs.
[ ! -e target/traps.txt ] || echo "$(head -1 target/traps.txt) (target/traps.txt)"

judged_ok=true
tests/judge.sh tests/permitted-skips.txt "$skips" "$log" -- "${failed_runs[@]}" || judged_ok=false
$matrix_ok || echo "FAILED: the matrix, see above"
$judged_ok && $matrix_ok
