#!/bin/bash
# Boots what image.sh has made, runs one command there as root, and passes on its output and its exit status.
#
# usage: boot.sh machine|namespaces IMAGE PROJECT SECONDS COMMAND
#
#   machine      an emulated one with a kernel of its own: control groups of version 2 with all controllers, devices, udev.
#                Hardware virtualisation is used where it works; else it runs at about a tenth of this machine's speed
#   namespaces   systemd as the first process of new namespaces on this machine's kernel: at full speed, but with no more
#                controllers in version 2 than this machine has there, no udev, no devices of its own
#
# The directory PROJECT is there under the same path, so that whatever was built for this path works there as well; in its
# own shell COMMAND starts in it. All else that it writes is gone at the end. After SECONDS all is ended, with status 124.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
where=$1
image=$(readlink -f "$2")
project=$(readlink -f "$3")
seconds=$4
command=$5

work=$(mktemp -d "$image/run.XXXXXX")
control=$work/control
mkdir "$control"
: >"$control/output"
pid=
group=
end() {
    # timeout passes it on.
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    [ -z "$pid" ] || wait "$pid" 2>/dev/null || true
    if [ -n "$group" ]; then
        echo 1 >"$group/cgroup.kill" || true
        # The kernel takes a moment to empty it.
        for _ in {1..100}; do
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.05
        done
    fi
    rm -rf --one-file-system "$work"
}
trap end EXIT
trap 'exit 130' INT TERM

start_machine() {
    local acceleration=tcg,thread=multi kvm
    # /dev/kvm may be there and yet run no kernel such as this; a machine without anything to boot tells.
    if [ -w /dev/kvm ] && kvm=$(timeout 5 "$here/tool.sh" "$image" qemu-system-x86_64 -accel kvm -cpu max -display none \
        -nodefaults -kernel "$image/kernel" -append 'console=ttyS0 panic=-1' -no-reboot -serial stdio 2>/dev/null </dev/null) &&
        grep 'Linux version' <<<"$kvm" >/dev/null; then
        acceleration=kvm
    fi
    {
        echo "mkdir -p '$project'"
        echo "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap project '$project' || exit"
        echo "cd '$project'"
        echo "$command"
    } >"$control/command"
    timeout -k 5 "$seconds" "$here/tool.sh" "$image" qemu-system-x86_64 \
        -nodefaults -no-user-config -display none -no-reboot -machine q35,hpet=off -accel "$acceleration" -cpu max,la57=off \
        -L "$image/tools/usr/share/qemu" -L "$image/tools/usr/share/seabios" -smp 2 -m 2048 \
        -kernel "$image/kernel" -initrd "$image/initramfs" \
        -append 'console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check net.ifnames=0 audit=0 apparmor=0 random.trust_cpu=on systemd.show_status=0' \
        -serial "file:$work/console" \
        -drive "file=$image/root.ext4,if=virtio,format=raw,snapshot=on" -device virtio-rng-pci \
        -fsdev "local,id=control,path=$control,security_model=none" -device virtio-9p-pci,fsdev=control,mount_tag=control \
        -fsdev "local,id=project,path=$project,security_model=none,multidevs=remap" -device virtio-9p-pci,fsdev=project,mount_tag=project \
        </dev/null >>"$work/console" 2>&1 &
    pid=$!
}

# In a control group of its own, which is the root of what systemd sees.
start_namespaces() {
    local groups=/sys/fs/cgroup
    [ ! -d $groups/unified ] || groups=$groups/unified
    {
        echo "cd '$project'"
        echo "$command"
    } >"$control/command"
    mkdir "$work"/{root,writes}
    group=$groups/$(basename "$work")
    mkdir "$group"
    cat >"$work/setup" <<SETUP
set -e
echo \$\$ >'$group/cgroup.procs'
exec unshare --cgroup --fork --pid --kill-child bash '$work/init'
SETUP
    cat >"$work/init" <<INIT
set -e
cd '$work'
mount -t tmpfs writes writes
mkdir writes/{upper,work}
mount -t overlay -o 'lowerdir=$image/root,upperdir=writes/upper,workdir=writes/work' root root
cd root
# An overlay cannot be below another as containerd's snapshots want it.
for d in tmp tests; do
    mount -t tmpfs -o mode=1777 \$d \$d
done
mount -t tmpfs -o mode=755 run run
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev
mkdir dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for n in null zero full random urandom tty fuse; do
    [ ! -e /dev/\$n ] || { : >dev/\$n; mount --bind /dev/\$n dev/\$n; }
done
mkdir -p './$project'
mount --rbind '$project' './$project'
mount --bind '$control' control
mkdir -p old
pivot_root . old
umount -l /old
exec env -i container=holdfast-tests PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --show-status=0
INIT
    timeout -k 5 "$seconds" unshare --mount --ipc --uts --net --propagation private bash "$work/setup" \
        </dev/null >"$work/console" 2>&1 &
    pid=$!
}

case $where in
machine | namespaces) "start_$where" ;;
*)
    echo "boot: neither machine nor namespaces: $where" >&2
    exit 2
    ;;
esac
tail -n +1 -s 0.2 --pid="$pid" -f "$control/output" &
reader=$!
status=0
wait "$pid" || status=$?
pid=
wait "$reader" || true
# 124: it had to be ended, which is a failure even if the command itself was done.
if [ -s "$control/status" ] && [ $status != 124 ]; then exit "$(cat "$control/status")"; fi
echo "boot: no end by itself, or no status of the command ($where; ended with $status); the last lines of the console:" >&2
tail -15 "$work/console" >&2
exit 124
