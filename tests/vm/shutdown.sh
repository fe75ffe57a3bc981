#!/bin/bash
# The machine's end under systemd: boots a machine with containers and shuts it down as people do. Each container must get its
# own stop signal, once, while all that it uses is there, and what manages them must leave after them. Then a second boot finds
# what was written down: who is to run again does, who was stopped by hand does not. It ends the same way, though its holdfastd
# is wedged.
#
# usage: shutdown.sh machine|namespaces IMAGE        see boot.sh; the programs are in $HOLDFAST_BIN_DIR or bin/
#        shutdown.sh inside DIR STAGE                what boot.sh runs there
#
# DIR is outside of the machine and so tells about its end: signals and units append a line each to DIR/events.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
project=$(readlink -f "$here/../..")
bin=$(readlink -f "${HOLDFAST_BIN_DIR:-$project/bin}")

# ---- inside

install_all() {
    local name unit
    for name in containerd-shim-holdfast-v2 holdfast-oci holdfastd holdfast; do
        install -D "$bin/$name" "/usr/local/bin/$name"
    done
    mkdir -p /usr/local/lib/systemd/system /etc/holdfast
    cp "$project"/systemd/*.{service,socket,slice} /usr/local/lib/systemd/system/
    # Running ones are left by holdfastd, so that they are for holdfast-shutdown alone.
    printf 'live-restore = true\nstate-dir = "%s"\n' "$dir/state" >/etc/holdfast/holdfastd.toml
    for unit in holdfast-shutdown holdfastd holdfast-containers; do
        mkdir -p "/etc/systemd/system/$unit.service.d"
        printf '[Service]\nExecStopPost=/bin/sh -c "echo %s: $SERVICE_RESULT >>%s"\n' "$unit" "$dir/events" \
            >"/etc/systemd/system/$unit.service.d/test.conf"
    done
    mkdir -p /rootfs/bin /rootfs/shared
    cp "$(command -v busybox)" /rootfs/bin/
    for name in sh sleep echo; do ln -sfn busybox "/rootfs/bin/$name"; done
    systemctl daemon-reload
    systemctl start holdfastd.service
}

# run NAME SIGNAL SCRIPT [OPTION...]: a container that notes its signal and then does SCRIPT.
run() {
    local name=$1 signal=$2 script=$3
    shift 3
    holdfast run -d --name "$name" --stop-signal "$signal" "$@" --rootfs /rootfs --volume "$dir:/shared" -- /bin/sh -c \
        "trap 'echo $name $signal >>/shared/events; $script' $signal; echo up; while :; do sleep 0.1; done"
    wait_for "$name has set its trap" says_up "$name"
}

says_up() {
    [ "$(holdfast logs "$1" 2>/dev/null | tail -1)" = up ]
}

wait_for() {
    local what=$1
    shift
    for _ in {1..1200}; do
        "$@" && return
        sleep 0.1
    done
    echo "not within two minutes: $what" >&2
    return 1
}

# At work are: one that ends at once, one by a signal of its own, one that takes its time, one that is deaf, and one that was
# stopped before.
prepare() {
    install_all
    run quick TERM 'exit 7' --restart always
    run own USR1 'exit 0' --restart unless-stopped
    run slow INT 'sleep 2; echo slow is done >>/shared/events; exit 0' --restart always
    run deaf TERM ':' --restart always --stop-timeout 3
    run stopped TERM 'exit 0' --restart unless-stopped
    holdfast stop stopped
    rm "$dir/events"
}

runs() {
    holdfast inspect "$1" | grep -q '"status": "running"'
}

come_back() {
    local name
    install_all
    for name in quick own slow deaf; do wait_for "$name runs again" runs "$name"; done
    if runs stopped; then
        echo "stopped runs again, though it was stopped by hand" >&2
        return 1
    fi
    # This time there is nobody to ask but the shims.
    systemctl kill -s STOP holdfastd.service
}

inside() {
    # Not as part of a condition: there errexit would not hold.
    "$1"
    # boot.sh takes this for the result; the rest happens when nobody is here any more.
    echo 0 >/control/status
    systemctl poweroff
    sleep infinity
}

# ---- outside

fail() {
    echo "FAILED: $1; the events were:" >&2
    cat "$dir/events" >&2
    exit 1
}

# before A B: both lines are there, once, in this order.
before() {
    local first second
    first=$(grep -nx "$1" "$dir/events" | cut -d: -f1)
    second=$(grep -nx "$2" "$dir/events" | cut -d: -f1)
    [ "$(wc -w <<<"$first $second")" = 2 ] || fail "\"$1\" and \"$2\" are there once each"
    [ "$first" -lt "$second" ] || fail "\"$1\" comes before \"$2\""
}

check_order() {
    local name
    for name in 'quick TERM' 'own USR1' 'slow INT' 'deaf TERM'; do
        before "$name" 'holdfast-shutdown: success'
    done
    before 'slow INT' 'slow is done'
    before 'slow is done' 'holdfast-shutdown: success'
    before 'holdfast-shutdown: success' 'holdfastd: success'
    before 'holdfastd: success' 'holdfast-containers: success'
    # Ended in parallel: the quick one did not wait for the slow.
    before 'quick TERM' 'slow is done'
    ! grep -q '^stopped' "$dir/events" || fail "the one that did not run got a signal"
}

boot() {
    rm -f "$dir/events"
    "$here/boot.sh" "$where" "$image" "$project" 600 \
        "export HOLDFAST_BIN_DIR='$bin'; exec '$here/shutdown.sh' inside '$dir' $1"
}

if [ "$1" = inside ]; then
    dir=$2
    inside "$3"
    exit
fi
where=$1
image=$2
mkdir -p "$project/target/vm"
dir=$(mktemp -d "$project/target/vm/shutdown.XXXXXX")
trap 'rm -rf "$dir"' EXIT
boot prepare
check_order
boot come_back
check_order
echo "the machine's end: ok"
