#!/bin/bash
# Judges a run of tests by what it left: counts, shows every skip, and fails for those that are not permitted.
#
# usage: judge.sh PERMITTED SKIPS LOG... [-- WHAT...]
#
# PERMITTED lists what may be skipped, see permitted-skips.txt; SKIPS is the directory of notes that the harness's skip()
# writes; the LOGs are what the test executables printed. Each WHAT is something that failed besides the tests, such as a test
# executable that did not build.
set -uo pipefail

list=$1
skips=$2
shift 2
logs=()
while [ $# != 0 ] && [ "$1" != -- ]; do
    logs+=("$1")
    shift
done
[ $# = 0 ] || shift
failed_runs=("$@")

# The list has lines "test<space>reason". A test that is named there may be skipped for any reason; a pattern permits
# only skips with the very reason that it gives.
permitted() {
    local name=$1 reason=$2 pattern why
    while read -r pattern why; do
        case $pattern in
        '' | '#'*) ;;
        *'*'*)
            # shellcheck disable=SC2053 # a pattern on purpose
            [[ $name != $pattern ]] || [ "$reason" != "$why" ] || return 0
            ;;
        "$name") return 0 ;;
        esac
    done <"$list"
    return 1
}

# Every skip leaves a file named after the test, with its reason.
skipped=0
forbidden=()
while IFS= read -r -d '' file; do
    name=$(basename "$file")
    skipped=$((skipped + 1))
    reason=$(cat "$file")
    case $name in
    v[0-9]*-*-*) ;; # a cell: the matrix shows it
    *) echo "skipped: $name: $reason" ;;
    esac
    permitted "$name" "$reason" || forbidden+=("$name: $reason")
done < <(find "$skips" -type f -print0 | sort -z)

passed=0
failed=0
ignored=0
while read -r p f i; do
    passed=$((passed + p))
    failed=$((failed + f))
    ignored=$((ignored + i))
done < <(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' "${logs[@]}")

# A run that failed without a failed test did not build, or died.
[ ${#failed_runs[@]} = 0 ] || [ $failed -gt 0 ] || failed=${#failed_runs[@]}
for r in "${failed_runs[@]}"; do echo "FAILED: $r"; done
for f in "${forbidden[@]}"; do echo "FORBIDDEN SKIP: $f (not in $list)"; done
[ $ignored = 0 ] || echo "FORBIDDEN: $ignored ignored tests; use skip() with a reason"

# The test framework counts a skipped test as passed.
echo "$((passed - skipped)) passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ ${#failed_runs[@]} = 0 ] && [ ${#forbidden[@]} = 0 ] && [ $ignored = 0 ]
