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
    "events_under_containerd v2_1"
    "loggers_under_containerd v2_1"
    "output_across_restarts v2_1"
    "tasks_under_containerd v2_1"
)
machine_calls=(
    out_of_memory
    update
    stats
    oci_runtime
    "real_runtimes crun::a_whole_life crun::the_hosts_devices crun::execs_end_before_init"
    "with_containerd v2_1::crun v2_1::runc::metrics v2_1::runc::an_update v2_1::holdfast_oci::metrics v2_1::holdfast_oci::an_update"
    "tasks_under_containerd $(echo v2_1::{crun,runc,holdfast_oci}::{lack_of_memory,the_figures})"
    "events_under_containerd v2_1"
)
# Seconds that a condition may take; an emulated processor has a tenth of the speed, and perhaps a busy machine below it.
namespaces_patience=30
machine_patience=300

skip() {
    echo "test-vm: skipped: $*"
    exit 0
}

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

failed=()
logs=()
# Of cells that both have seen the machine's count, which come later.
matrix=target/vm/matrix
skips=target/vm/skips
rm -rf "$matrix" "$skips" target/vm/{namespaces,machine}
mkdir -p "$matrix" "$skips"
for part in $parts; do
    started=$SECONDS
    notes=target/vm/$part
    mkdir -p "$notes" "$skips/$part"
    case $part in
    namespaces) patience=$namespaces_patience calls=("${namespaces_calls[@]}") ;;
    machine) patience=$machine_patience calls=("${machine_calls[@]}") ;;
    *)
        echo "run.sh: neither namespaces nor machine: $part" >&2
        exit 2
        ;;
    esac
    echo "== $part"
    "$here/boot.sh" "$part" "$image" "$project" 1500 \
        "exec tests/vm/suite.sh '$bin' $notes $skips/$part $matrix $patience $(printf '%q ' "${calls[@]}")" 9>&- 2>&1 | tee "$notes/log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$part")
    logs+=("$notes/log")
    echo "== $part took $((SECONDS - started)) s"
done
if [[ " $parts " = *" namespaces "* ]]; then
    started=$SECONDS
    "$here/shutdown.sh" namespaces "$image" 9>&- || failed+=("the machine's end")
    echo "== the machine's end took $((SECONDS - started)) s"
fi

echo "== matrix: target/vm/${parts##* }/matrix.md"
cat "target/vm/${parts##* }/matrix.md"
tests/judge.sh tests/vm/permitted-skips.txt "$skips" "${logs[@]}" -- "${failed[@]}"
