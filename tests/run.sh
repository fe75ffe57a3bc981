#!/bin/bash
# Runs the three rings and judges the result. `make test` calls it; the programs are in bin/, the peers in target/peers.
#
# usage: run.sh [RING...]        default: 1 2 3
#
#   1  pure: unit tests of every crate
#   2  fake runtime: the real shim over a scripted OCI runtime; no root needed
#   3  real: runc, crun, containerd; root needed
#
# A test file in */tests/ belongs to the ring that its first line names ("//! Ring 3: ..."), else to ring 2. A test that
# cannot run here says so through skip() of the harness; each skip must be listed in permitted-skips.txt.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

rings=${*:-1 2 3}
skips=$PWD/target/skips
log=$PWD/target/test.log
rm -rf "$skips"
mkdir -p "$skips"
: >"$log"
export HOLDFAST_SKIPS_DIR=$skips
failed_runs=()

ring_of() {
    local ring
    ring=$(head -1 "$1" | sed -n 's/^\/\/! Ring \([123]\).*/\1/p')
    echo "${ring:-2}"
}

# The cargo calls of a ring of integration tests, one line for each package.
calls_of_ring() {
    local crate file args
    for crate in proto shim supervisor tests; do
        args=
        for file in "$crate"/tests/*.rs; do
            [ -e "$file" ] || continue
            [ "$(ring_of "$file")" != "$1" ] || args+=" --test $(basename "$file" .rs)"
        done
        [ -z "$args" ] || echo "-p holdfast-$crate$args"
    done
}

# One cargo run; its whole output is shown and kept for the count.
run() {
    echo "+ cargo test $*"
    cargo test --locked --no-fail-fast "$@" </dev/null 2>&1 | tee -a "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed_runs+=("cargo test $*")
}

for ring in $rings; do
    started=$SECONDS
    case $ring in
    1)
        echo "== ring 1: pure"
        run --workspace --lib --bins
        ;;
    2 | 3)
        [ "$ring" = 2 ] && echo "== ring 2: fake runtime" || echo "== ring 3: real runtimes and managers"
        while read -r -a args; do
            run "${args[@]}"
        done < <(calls_of_ring "$ring")
        ;;
    *)
        echo "run.sh: no ring $ring" >&2
        exit 2
        ;;
    esac
    echo "== ring $ring took $((SECONDS - started)) s"
done

# Every skip leaves a file named after the test, with its reason; the list has lines "test<space>reason".
skipped=0
forbidden=()
while IFS= read -r -d '' file; do
    name=$(basename "$file")
    skipped=$((skipped + 1))
    echo "skipped: $name: $(cat "$file")"
    grep -v '^#' tests/permitted-skips.txt | cut -d' ' -f1 | grep -Fx -e "$name" >/dev/null || forbidden+=("$name")
done < <(find "$skips" -type f -print0 | sort -z)

passed=0
failed=0
ignored=0
while read -r p f i; do
    passed=$((passed + p))
    failed=$((failed + f))
    ignored=$((ignored + i))
done < <(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' "$log")

# A run that failed without a failed test did not build, or died.
[ ${#failed_runs[@]} = 0 ] || [ $failed -gt 0 ] || failed=${#failed_runs[@]}
for r in "${failed_runs[@]}"; do echo "FAILED: $r"; done
for f in "${forbidden[@]}"; do echo "FORBIDDEN SKIP: $f (not in tests/permitted-skips.txt)"; done
[ $ignored = 0 ] || echo "FORBIDDEN: $ignored ignored tests; use skip() with a reason"

# The test framework counts a skipped test as passed.
echo "$((passed - skipped)) passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ ${#failed_runs[@]} = 0 ] && [ ${#forbidden[@]} = 0 ] && [ $ignored = 0 ]
