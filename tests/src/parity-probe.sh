#!/bin/sh
# What a container sees of itself, for tests/runtime_parity.rs. Sections begin with "== NAME"; a line with a tab is a fact
# of its own. Runs as any user, with nothing but busybox.
# There are a hundred such containers: what the shell can do itself starts no program.
b=/bin/busybox
newline='
'
tab='	'
exec 2>&1
try() { # name, command: its output or error, and its status
    name=$1
    shift
    out=$("$@" 2>&1 </dev/null)
    status=$?
    out=${out:0:300}
    out=${out//$newline/ }
    printf '%s\t%s %s\n' "$name" "$status" "${out//$tab/ }"
}
size_of() {
    if [ -d "$1" ]; then $b ls "$1" | $b wc -l; else $b head -c 1 "$1" | $b wc -c; fi
}
append_to() {
    : >>"$1"
}
echo "== id"
$b id
echo "== umask"
umask
echo "== cwd"
$b pwd
echo "== environ"
$b tr '\0' '\n' </proc/$$/environ
echo "== status"
$b cat /proc/$$/status
echo "== limits"
$b cat /proc/$$/limits
echo "== cgroup"
$b cat /proc/$$/cgroup
echo "== names"
try hostname $b hostname
try domain $b cat /proc/sys/kernel/domainname
echo "== fds"
for fd in /proc/$$/fd/*; do
    [ "${fd##*/}" -ge 10 ] || printf '%s\t%s\n' "${fd##*/}" "$($b readlink $fd)"
done
echo "== terminal"
[ ! -t 1 ] || { $b tty; $b stty -a; $b stat -c '%a %u %g' /dev/console; }
echo "== oom"
$b cat /proc/$$/oom_score_adj
[ "$1" = exec ] && {
    echo "== attributes"
    for f in attr/current loginuid sessionid timerslack_ns personality uid_map; do try $f $b cat /proc/$$/$f; done
    echo "== syscalls"
    try mkdir $b mkdir /tmp/probe-dir-exec
    try unshare $b unshare -U true
    exit 0
}
echo "== dev"
$b find /dev 2>&1 | $b sort | $b xargs $b stat -c "%n$tab%F %a %u %g %t:%T %s %N"
echo "== open"
for d in null zero full random urandom tty console ptmx fuse kmsg sub/loop loop0; do
    try "r-$d" $b dd if=/dev/$d of=/dev/null bs=1 count=0 status=none
    try "w-$d" $b dd if=/dev/null of=/dev/$d bs=1 count=0 conv=notrunc status=none
done
echo "== mknod"
for n in "c 1 3" "c 10 229" "b 7 0" "c 1 11" "b 254 0" "c 5 1"; do
    try "make $n" $b mknod /dev/shm/node $n
    try "open $n" $b dd if=/dev/shm/node of=/dev/null bs=1 count=0 status=none
    $b rm -f /dev/shm/node
done
echo "== paths"
for p in /proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/sched_debug /proc/scsi \
    /sys/firmware /proc/version /data/file /data/dir /etc/passwd /private; do
    try "$p" $b stat -c '%F %a %u %g' $p
    try "empty $p" size_of $p
done
echo "== write"
for p in /x /tmp/x /data/ro/x /etc/group /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/x /dev/x /dev/shm/x /b/ro/x \
    /b/rbind/x /b/rro/sub/x /b/ro/sub/x /host/x /host/sub/x /t/0/x /t/1/x; do
    try "$p" append_to $p
    $b rm -f /x /tmp/x /dev/x /dev/shm/x /b/rbind/x /b/ro/sub/x /host/sub/x /t/0/x 2>/dev/null
done
echo "== sysctl"
for s in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/ipv4/ip_forward net/ipv4/ip_local_port_range \
    net/core/somaxconn kernel/msgmax kernel/shmmax kernel/sem fs/mqueue/msg_max; do
    try $s $b cat /proc/sys/$s
done
echo "== network"
$b ip -o addr 2>&1 | $b sed 's/^[0-9]*: //'
echo "== keyring"
# Root sees those of others' sessions, too.
$b cat /proc/keys 2>/dev/null | $b awk '$8 == "keyring" && ($9 !~ /^_ses\./ || $9 == "_ses.@ID@:") { $1 = ""; $2 = ""; $3 = ""; $4 = ""; print }' | $b sort
echo "== root"
$b stat -c '%n %F %a %u %g' /* /etc/* /link
echo "== syscalls"
try mkdir $b mkdir /tmp/probe-dir
try chmod $b chmod 700 /tmp
$b chmod 1777 /tmp 2>/dev/null
try unshare-user $b unshare -U true
try unshare-uts $b unshare -u true
try sethostname $b hostname other
try mount $b mount -t tmpfs x /tmp
try chroot $b chroot / true
try sync $b sync
try nice $b nice -n -1 true
try ping $b sh -c "$b ping -q -c 1 -W 1 127.0.0.9 | $b grep -c '1 packets received'"
$b rmdir /tmp/probe-dir 2>/dev/null
echo "== mounts"
$b cut -d' ' -f2,3 /proc/mounts
echo "== end"
exec /bin/sleep 100000
