#!/bin/bash
# `make test-vm`: what only a machine of its own can show, on a small Debian with systemd as its first process, nothing but
# cgroup v2, a kernel of today, and that distribution's containerd, runc and crun.
#
# usage: run.sh [namespaces|machine]...        default: both
#
#   namespaces   systemd on this machine's kernel, at full speed: the units, the machine's end, and the columns of the matrix
#                that are of this distribution, but for what needs the controllers of cgroup v2
#   machine      an emulated one, with a kernel of its own: limits, lack of memory, device rules, figures, systemd's control
#                groups, the whole life of containers with crun, and those rows of the matrix that the namespaces leave
#
# The programs are in $HOLDFAST_BIN_DIR, else bin/. The image is made once and kept in target/vm, by the name of what it is
# made from. What a run has seen lies in target/vm/machine and target/vm/namespaces; `make matrix` takes the matrix from there.
#
# Where there can be no such machine, one line says why, and the exit status is 0.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
project=$PWD
here=$project/tests/vm
parts=${*:-namespaces machine}
bin=$(readlink -f "${HOLDFAST_BIN_DIR:-bin}")

# Each a test executable with its arguments: words that are in the names of its tests.
namespaces_calls=(
    under_systemd
    "with_containerd v2_1"
    "containerd_restart v2_1"
    "loggers_under_containerd v2_1"
    "output_across_restarts v2_1"
    "tasks_under_containerd v2_1"
    "pods v2_1"
    "monitoring v2_1"
    "sandbox_controller v2_1"
)
machine_calls=(
    "under_systemd a_daemon_reload what_the_unit_is_denied containers_and_shims_have a_stop_without_live_restore"
    out_of_memory
    update
    stats
    oci_runtime
    oci_users
    "real_runtimes crun::a_whole_life crun::the_hosts_devices crun::execs_end_before_init"
    "with_containerd $(echo v2_1::{crun,runc,holdfast_oci}::{metrics,an_update}) $(echo v2_1::crun::{run_prints,an_exec,pause})"
    "tasks_under_containerd $(echo v2_1::{crun,runc,holdfast_oci}::{lack_of_memory,the_figures})"
    "events_under_containerd v2_1"
    "pods $(echo v2_1::{crun,runc,holdfast_oci}::lack_of_memory)"
    "monitoring $(echo v2_1::{crun,runc,holdfast_oci}::containerds_metrics)"
    # No pod runs where nothing gives it a share of the processor.
    "pods_under_cri $(echo v2_1::crun::{a_container,containers_of,namespaces,what_a,a_log,a_terminal,an_exec,a_pod_,a_pods_own,a_score} v2_1::{crun,runc,holdfast_oci}::{lack_of_memory,a_pods_figures})"
    # Not beside others: systemd is asked for more than it can answer in time.
    "pods_under_cri $(echo v2_1::{crun,runc,holdfast_oci}::a_pods_control)"
    # Not beside others, which would wait too long.
    "pods_under_cri v2_1::crun::thirty"
    "streams_under_cri v2_1::crun"
)
# Seconds that a condition may take; an emulated processor has a tenth of the speed, and perhaps a busy machine below it.
namespaces_patience=30
machine_patience=300

skip() {
    echo "test-vm: skipped: $*"
    exit 0
}

for part in $parts; do
    case $part in
    namespaces | machine) ;;
    *)
        echo "run.sh: neither namespaces nor machine: $part" >&2
        exit 2
        ;;
    esac
done
[ "$(id -u)" = 0 ] || skip "needs root, to make a root filesystem and to run systemd"
[ "$(uname -m)" = x86_64 ] || skip "the machine is an x86_64 one, and this is $(uname -m)"
command -v apt-get >/dev/null || skip "qemu and the system come from Debian's packages, and this machine has no apt"

mkdir -p target/vm
exec 9>target/vm/lock
flock 9
started=$SECONDS
image=$project/target/vm/image-$(cat "$here"/{image,guest}.sh tests/unpack-packages.sh | sha256sum | cut -c1-16)
if [ ! -d "$image" ]; then
    rm -rf target/vm/image-*
    "$here/image.sh" "$image.new"
    case $? in
    0) mv "$image.new" "$image" ;;
    3) skip "the packages of qemu and of the system cannot be had, see above" ;;
    *) exit 1 ;;
    esac
fi
echo "== image: $((SECONDS - started)) s"

# The test executables, without the symbols that nobody there reads, below target/vm/tests as they are below target/debug.
stage() {
    local tests=() call executable name
    for call in "${namespaces_calls[@]}" "${machine_calls[@]}"; do tests+=(--test "${call%% *}"); done
    cargo test --locked --no-run -p holdfast-tests "${tests[@]}" --message-format=json-render-diagnostics \
        >target/vm/built </dev/null || return
    rm -rf target/vm/tests
    mkdir -p target/vm/tests/deps
    while read -r executable; do
        name=$(basename "$executable")
        case $executable in
        # Its name ends with a hash.
        */deps/*) name=deps/${name%-*} ;;
        esac
        strip -o "target/vm/tests/$name" "$executable" || return
    done < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' target/vm/built)
}
stage || exit

# run_part PART: boots it, runs its calls, and judges what they left, by its own list of permitted skips.
run_part() {
    local part=$1 notes=target/vm/$1 patience calls failed=()
    case $part in
    namespaces) patience=$namespaces_patience calls=("${namespaces_calls[@]}") ;;
    machine) patience=$machine_patience calls=("${machine_calls[@]}") ;;
    esac
    rm -rf "$notes"
    mkdir -p "$notes"/{skips,cells}
    "$here/boot.sh" "$part" "$image" "$project" 1500 \
        "exec tests/vm/suite.sh '$bin' $notes $patience $(printf '%q ' "${calls[@]}")" 9>&- 2>&1 | tee "$notes/log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$part")
    if [ "$part" = namespaces ]; then
        echo "== the machine's end"
        "$here/shutdown.sh" namespaces "$image" 9>&- || failed+=("the machine's end")
    fi
    cat "$notes/matrix.md"
    tests/judge.sh "tests/vm/permitted-skips-$part.txt" "$notes/skips" "$notes/log" -- "${failed[@]}"
}

status=0
for part in $parts; do
    started=$SECONDS
    echo "== $part"
    run_part "$part" || status=1
    echo "== $part took $((SECONDS - started)) s"
done
exit $status
