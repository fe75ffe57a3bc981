#!/bin/bash
# Lists the containers whose shim lives; fails if there is any. A record that cannot be read counts as a living one:
# what is unknown must not be taken for gone.
#
# Reads $HOLDFAST_RUN_DIR/tasks/<instance>/<namespace>/<id>/record.json (default /run/holdfast).
set -euo pipefail

# The number that follows "key": in the object named shim of a record on stdin.
shim_field() {
    tr -d ' \n\t' | sed -n 's/.*"shim":{[^}]*"'"$1"'":\([0-9]\{1,\}\)[,}].*/\1/p'
}

# Field 22 of /proc/PID/stat, counted from behind the last parenthesis since the name before it may hold anything;
# nothing for a process that is gone or only waits to be reaped.
start_time() {
    local rest
    rest=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 0
    # shellcheck disable=SC2086 # split into fields
    set -- $rest
    case $1 in Z | X) ;; *) echo "${20}" ;; esac
}

boot_id=$(cat /proc/sys/kernel/random/boot_id)
alive=0
for record in "${HOLDFAST_RUN_DIR:-/run/holdfast}"/tasks/*/*/*/record.json; do
    [ -e "$record" ] || continue
    pid=$(shim_field pid <"$record")
    recorded=$(shim_field start_time <"$record")
    name=${record%/record.json}
    name=${name#*/tasks/*/}
    if [ -z "$pid" ] || [ -z "$recorded" ]; then
        echo "$name (unreadable: $record)"
        alive=1
    elif grep -q "$boot_id" "$record" && [ "$(start_time "$pid")" = "$recorded" ]; then
        echo "$name (shim $pid)"
        alive=1
    fi
done
exit $alive
