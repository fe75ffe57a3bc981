#!/bin/bash
# Makes the machine that `make test-vm` boots: a small Debian with systemd, a kernel, and a qemu to boot it with.
#
# usage: image.sh DIR
#
# All of it is unpacked from the packages of one suite of this machine's own mirror, see tests/unpack-packages.sh; nothing
# is installed, and no package's scripts run. The suite is newer than the machine's release on purpose: the tests want to
# see Linux 6.15 or later and containerd 2.1.
#
#   DIR/tools                    qemu and what makes the image, with all libraries and their loader
#   DIR/root                     the root filesystem as a directory, for systemd in namespaces
#   DIR/root.ext4                the same for the machine
#   DIR/kernel, DIR/initramfs    what it boots
#
# Exit status 3: the packages cannot be had.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
suite=forky
# tiny-initramfs is there only because the kernel's package wants some maker of such images, and it is the smallest.
guest="base-files base-passwd bash bsdutils busybox-static containerd coreutils crun dash dbus diffutils e2fsprogs findutils
    grep gzip iproute2 kmod libc-bin linux-image-amd64 mawk mount procps runc sed systemd systemd-sysv tar tiny-initramfs udev
    util-linux"
tools="e2fsprogs qemu-system-x86 xz-utils zstd"

# The modules without which there is no root filesystem, and those that the tests make use of; names as for modprobe.
early="virtio_pci virtio_blk ext4"
late="9pnet_virtio 9p overlay loop fuse"

rm -rf "$1"
mkdir -p "$1"
dir=$(readlink -f "$1")
root=$dir/root

tool() {
    "$here/tool.sh" "$dir" "$@"
}

# What the packages' scripts would have done, as far as something here depends on it.
configure_packages() {
    cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
    cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
    ln -sfn mawk "$root/usr/bin/awk"
    mkdir -p "$root"/usr/local/{bin,sbin,lib}
    chroot "$root" /sbin/ldconfig
    SYSTEMD_LOG_LEVEL=warning chroot "$root" /usr/bin/systemd-sysusers
}

# A machine for one run, without a network, that has nothing to do but the tests.
configure_system() {
    local unit units=$root/etc/systemd/system
    echo holdfast-tests >"$root/etc/hostname"
    echo '127.0.0.1 localhost holdfast-tests' >"$root/etc/hosts"
    # Empty: a new machine in every run.
    : >"$root/etc/machine-id"
    mkdir -p "$root/control" "$root/tests" "$root/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/tests.conf"
    for unit in systemd-{hwdb-update,journal-catalog-update,firstboot,networkd,networkd-wait-online,resolved,timesyncd}.service \
        systemd-networkd.socket ldconfig.service getty@.service serial-getty@.service getty.target containerd.service \
        dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service proc-sys-fs-binfmt_misc.automount; do
        ln -sfn /dev/null "$units/$unit"
    done
    ln -sfn /usr/lib/systemd/system/multi-user.target "$units/default.target"

    install -m 755 "$here/guest.sh" "$root/usr/lib/holdfast-tests"
    cat >"$units/holdfast-tests.service" <<'UNIT'
[Unit]
Description=The tests of holdfast
# As on a machine at work, everything else has been started.
After=multi-user.target

[Service]
ExecStart=/usr/lib/holdfast-tests
# The tests make control groups, and have processes killed for want of memory.
Delegate=yes
OOMPolicy=continue
UNIT
    mkdir -p "$units/multi-user.target.wants"
    ln -sfn ../holdfast-tests.service "$units/multi-user.target.wants/"
}

# A number of $3 bytes at the offset $2 of the file $1.
number_at() {
    od -A n -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '
}

# The kernel out of its compressed form, in which an emulated processor would unpack it for long. Where it lies is in the
# header, see "The Linux/x86 Boot Protocol"; the last 4 bytes are its size. Not all compressions are known here, and qemu
# boots the compressed one as well.
uncompress_kernel() {
    local from=$1 to=$2 start length
    start=$((($(number_at "$from" 0x1f1 1) + 1) * 512 + $(number_at "$from" 0x248 4)))
    length=$(($(number_at "$from" 0x24c 4) - 4))
    head -c "$((start + length))" "$from" | tail -c "$length" >"$dir/payload"
    tool zstd -dcq "$dir/payload" >"$to" 2>/dev/null || tool xz -dcq "$dir/payload" >"$to" 2>/dev/null || cp "$from" "$to"
    rm "$dir/payload"
}

# The files of modules and of those that they need, in the order of loading.
files_of_modules() {
    local module
    for module in "$@"; do
        chroot "$root" /sbin/modprobe -S "$release" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# Of the kernel's modules a hundredth is of use here; that is unpacked already.
reduce_modules() {
    local kept=$dir/kept file plain
    chroot "$root" /sbin/depmod "$release"
    # shellcheck disable=SC2086 # lists of words
    for file in $(files_of_modules $early $late); do
        plain=$kept$file
        mkdir -p "$(dirname "$plain")"
        case $file in
        *.xz) tool xz -dc "$root$file" >"${plain%.xz}" ;;
        *.zst) tool zstd -dcq "$root$file" >"${plain%.zst}" ;;
        *) cp "$root$file" "$plain" ;;
        esac
    done
    rm -rf "$root/lib/modules/$release/kernel"
    cp -a "$kept/lib/modules/$release/kernel" "$root/lib/modules/$release/"
    rm -r "$kept"
    chroot "$root" /sbin/depmod "$release"
}

# All that it does is to mount the disk.
make_initramfs() {
    local tree=$dir/initramfs.d file
    mkdir -p "$tree"/{bin,dev,disk,modules}
    cp "$root/usr/bin/busybox" "$tree/bin/busybox"
    # shellcheck disable=SC2086 # a list of words
    for file in $(files_of_modules $early); do
        cp "$root$file" "$tree/modules/"
        echo "/bin/busybox insmod /modules/$(basename "$file")" >>"$tree/load"
    done
    cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
. /load
until /bin/busybox mount -t ext4 /dev/vda /disk; do /bin/busybox sleep 0.1; done
/bin/busybox mount --move /dev /disk/dev
exec /bin/busybox switch_root /disk /sbin/init
INIT
    chmod 755 "$tree/init"
    (cd "$tree" && find . | ./bin/busybox cpio -o -H newc 2>/dev/null) >"$dir/initramfs"
    rm -r "$tree"
}

# shellcheck disable=SC2086 # lists of words
"$here/../unpack-packages.sh" --suite "$suite" --whole "$dir/tools" $tools
# shellcheck disable=SC2086
"$here/../unpack-packages.sh" --suite "$suite" --whole "$root" $guest
release=$(basename "$(echo "$root"/lib/modules/*)")

configure_packages
configure_system
uncompress_kernel "$root/lib/modules/$release/vmlinuz" "$dir/kernel"
reduce_modules
make_initramfs
rm -rf "$root"/usr/share/{doc,man,info,locale,lintian,bug} "$root/lib/modules/$release"/{vmlinuz,System.map,config}
# Larger than what is in it, for what the tests write; as a sparse file.
truncate -s 4G "$dir/root.ext4"
tool mke2fs -q -F -t ext4 -d "$root" "$dir/root.ext4"
