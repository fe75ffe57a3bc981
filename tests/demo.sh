#!/bin/bash
# The demonstration: a container outlives holdfastd, and, where containerd can be had, containerd too.
#
# `make demo` builds and calls this. Everything happens in private directories; whatever was started is ended by pid, and
# whatever was made is deleted, also when interrupted. Needs root and nothing that `make build` does not make: the
# container's root file system is one static program of ours.
#
# COUNTER: that program. HOLDFAST_BIN_DIR: the four programs (default bin/).
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
bin=${HOLDFAST_BIN_DIR:-$here/bin}
peers=$here/target/peers/bin
counter=${COUNTER:?the static program counter, as make demo gives it}
[ "$(id -u)" = 0 ] || { echo "demo: needs root, to make a container" >&2; exit 1; }

work=$(mktemp -d /tmp/hf-demo.XXXXXX)
export HOLDFAST_RUN_DIR=$work/run HOLDFAST_STATE_DIR=$work/state
export PATH=$bin:/usr/sbin:/usr/bin:/sbin:/bin
unset HOLDFAST_SOCKET
daemon='' # pid of holdfastd
containerd='' # pid of the private containerd
# Pids of shims and containers, each with its start time: what is left of them is killed at the very end.
marked=()

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' plain=$'\e[0m'; else bold='' green='' plain=''; fi
act() { printf '\n%s=== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '\n%s\n' "$*"; }
proved() { printf '%s  ✔ %s%s\n' "$green" "$*" "$plain"; }
indent() { sed 's/^/    /'; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# Shows a command as it would be typed, then runs it.
show() { printf '  $ %s\n' "${*//$peers\//}"; "$@" 2>&1 | indent; }

# Field N of /proc/PID/stat, counted behind the name: 1 state, 2 parent, 20 start time.
field() {
    local stat
    stat=$(cat "/proc/$2/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    # shellcheck disable=SC2086 # split into fields
    set -- "$1" $stat
    shift "$1"
    echo "$1"
}
parent() { field 2 "$1"; }
alive() { case $(field 1 "$1" 2>/dev/null) in '' | Z | X) return 1 ;; esac; }
name() { tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | cut -d' ' -f1 | sed 's|.*/||'; }
mark() { marked+=("$1:$(field 20 "$1")"); }

# The ancestors of a container, its first process last.
tree() {
    local line=() pid indent='    '
    for pid in "$@"; do line+=("$(name "$pid") (pid $pid, parent $(parent "$pid"))"); done
    printf '%s%s\n' "$indent" "${line[0]}"
    for ((n = 1; n < ${#line[@]}; n++)); do
        printf '%s└─ %s\n' "$indent" "${line[n]}"
        indent+='   '
    done
}

# Waits until a command succeeds.
until_ok() {
    local what=$1 end=$((SECONDS + 15))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "$what: not within 15 seconds"
        sleep 0.05
    done
}

end_process() {
    local signal=$1 pid=$2
    [ -n "$pid" ] || return 0
    kill "-$signal" "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

clean_up() {
    trap - EXIT INT TERM
    set +e
    # The tidy way first: the managers remove what they made.
    if [ -d "$work/state" ]; then
        [ -n "$daemon" ] && alive "$daemon" || start_holdfastd
        ids=$(timeout 5 holdfast ps -aq 2>/dev/null)
        # shellcheck disable=SC2086 # several ids
        [ -z "$ids" ] || timeout 15 holdfast rm -f $ids >/dev/null 2>&1
    fi
    if [ -n "$containerd" ]; then
        alive "$containerd" || start_containerd
        timeout 10 "${ctr[@]}" task rm -f counter >/dev/null 2>&1
        timeout 5 "${ctr[@]}" container rm counter >/dev/null 2>&1
    fi
    end_process TERM "$daemon"
    end_process TERM "$containerd"
    for one in "${marked[@]}"; do
        pid=${one%%:*}
        [ "$(field 20 "$pid" 2>/dev/null)" = "${one#*:}" ] && kill -KILL "$pid" 2>/dev/null
    done
    # Empty parents of the containers' cgroups; one that is in use is not ours, and stays.
    rmdir /sys/fs/cgroup{,/*}/holdfast /sys/fs/cgroup{,/*}/demo 2>/dev/null
    mount_points=$(awk -v dir="$work/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
    for point in $mount_points; do umount -l "$point" 2>/dev/null; done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_holdfastd() {
    # A session of its own: ctrl-c is for this script, which then cleans up with its help.
    setsid holdfastd --live-restore >>"$work/holdfastd.log" 2>&1 &
    daemon=$!
    until_ok "holdfastd answers" timeout 2 holdfast info
}

start_containerd() {
    PATH=$bin:$peers:$PATH setsid "$peers/containerd" --config "$work/containerd.toml" >>"$work/containerd.log" 2>&1 &
    containerd=$!
    until_ok "containerd answers" timeout 2 "${ctr[@]}" version
}

json_number() { holdfast --json inspect counter | sed -n 's/^ *"'"$1"'": \([0-9]*\),*$/\1/p'; }
numbers() { grep -x '[0-9]*' || true; }
last_number() { numbers | tail -1; }

# Succeeds if the numbers on standard input are 1, 2, 3, … without a gap.
unbroken() { numbers | awk '$1 != NR { exit 1 } END { exit NR == 0 }'; }

# Ends a supervisor by SIGKILL; bash's own remark about that is not wanted.
kill_hard() { { kill -KILL "$1" && wait "$1"; } 2>/dev/null || true; }

first_act() {
    act "First act: holdfastd is killed, the container is not"
    say "The supervisor starts, in directories of its own, and runs a container that counts."
    start_holdfastd
    show holdfast run -d --name counter --rootfs "$work/rootfs" -- /counter
    pid=$(json_number pid) shim=$(json_number shim_pid)
    mark "$pid"
    mark "$shim"
    until_ok "the counter counts" test "$(holdfast logs counter | last_number)" -ge 1
    show holdfast ps
    say "The processes:"
    tree "$daemon" "$shim" "$pid"

    say "Now the supervisor is killed, with no chance to prepare for it."
    before=$(holdfast logs counter | last_number)
    printf '  $ kill -KILL %s\n' "$daemon"
    kill_hard "$daemon"
    alive "$daemon" && fail "holdfastd survived SIGKILL"
    alive "$pid" && alive "$shim" || fail "the container died with its supervisor"
    adopter=$(parent "$shim")
    sleep 1
    log=$(find "$work/state" -name log.json)
    after=$(tail -1 "$log" | sed 's/.*"log":"\([0-9]*\).*/\1/')
    tree "$adopter" "$shim" "$pid"
    role="the nearest subreaper above it"
    [ "$adopter" != 1 ] || role="the machine's first process"
    proved "The shim's parent is now $(name "$adopter") (pid $adopter), $role."
    [ "$after" -gt "$before" ] || fail "the counter stood still at $before"
    proved "Without a supervisor the counter went on from $before to $after, into its own log."

    say "The supervisor comes back, and looks around."
    start_holdfastd
    show holdfast ps
    show holdfast info
    [ "$(json_number pid)" = "$pid" ] && [ "$(json_number shim_pid)" = "$shim" ] || fail "other processes than before"
    proved "It found the same container again: same process, same shim, its uptime unbroken."
    holdfast logs counter >"$work/log"
    unbroken <"$work/log" || fail "the log has a gap"
    proved "The log has every number from 1 to $(last_number <"$work/log"): nothing lost, nothing twice."
    show holdfast exec counter /counter look
    proved "A new process ran inside it: the container is as usable as before."

    say "It is stopped, as if nothing had been."
    show holdfast stop counter
    status=$(holdfast wait counter) || true
    holdfast logs counter | tail -1 | indent
    [ "$status" = 143 ] || fail "exit status $status instead of 143"
    proved "Its exit status is $status: what it said itself on SIGTERM."
    show holdfast rm counter
    ! alive "$pid" && ! alive "$shim" || fail "something still runs"
    proved "Nothing of it is left: no process, no shim, no file."
    end_process TERM "$daemon"
    daemon=''
}

second_act() {
    act "Second act: the same under containerd $("$peers/containerd" --version | sed 's/.* v\{0,1\}\([0-9][0-9.]*\).*/\1/')"
    ctr=("$peers/ctr" -a "$work/c.sock" -n demo)
    cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/containerd-root"
state = "$work/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/c.sock"
TOML
    say "A private containerd starts, and ctr runs the counter with the runtime io.containerd.holdfast.v2."
    start_containerd
    show "${ctr[@]}" run -d --runtime io.containerd.holdfast.v2 --log-uri "file://$work/ctr.log" --rootfs "$work/rootfs" counter /counter
    pid=$("${ctr[@]}" task ls | awk '$1 == "counter" { print $2 }')
    shim=$(parent "$pid")
    mark "$pid"
    mark "$shim"
    until_ok "the counter counts" test -s "$work/ctr.log"
    tree "$shim" "$pid"

    say "containerd is killed, with no chance to prepare for it."
    before=$(last_number <"$work/ctr.log")
    printf '  $ kill -KILL %s\n' "$containerd"
    kill_hard "$containerd"
    sleep 1
    alive "$pid" && alive "$shim" || fail "the container died with containerd"
    after=$(last_number <"$work/ctr.log")
    [ "$after" -gt "$before" ] || fail "the counter stood still at $before"
    proved "Without containerd the counter went on from $before to $after."

    say "containerd comes back."
    start_containerd
    show "${ctr[@]}" task ls
    "${ctr[@]}" task ls | grep -q "^counter *$pid *RUNNING" || fail "containerd does not know its container"
    proved "containerd has its container again: same process, running."
    unbroken <"$work/ctr.log" || fail "the output has a gap"
    proved "The output has every number from 1 to $(last_number <"$work/ctr.log")."
    show "${ctr[@]}" task exec --exec-id look counter /counter look
    proved "A new process ran inside it."
    "${ctr[@]}" task kill -s SIGTERM counter
    until_ok "the counter ends" eval '"${ctr[@]}" task ls | grep -q "^counter .*STOPPED"'
    # ctr says it in words.
    status=$("${ctr[@]}" task rm counter 2>&1 | sed -n 's/.*exit code \([0-9]*\).*/\1/p')
    [ "$status" = 143 ] || fail "exit status ${status:-0} instead of 143"
    proved "Its exit status is $status, as before."
    "${ctr[@]}" container rm counter
    end_process TERM "$containerd"
    containerd=''
}

mkdir -p "$work/rootfs"
cp "$counter" "$work/rootfs/counter"
started=$SECONDS
first_act
if [ ! -x "$peers/containerd" ] && [ -x "$here/tests/peers.sh" ]; then
    say "(looking for a containerd to unpack; it is not installed)"
    timeout 300 "$here/tests/peers.sh" >/dev/null 2>&1 || true
fi
if [ -x "$peers/containerd" ] && [ -x "$peers/ctr" ]; then
    second_act
else
    say "There is no second act: no containerd in target/peers, and none could be unpacked there."
fi
act "Done in $((SECONDS - started)) seconds; nothing is left behind."
