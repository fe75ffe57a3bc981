#!/bin/bash
# Unpacks packages of this machine's distribution below a directory. Installs nothing.
#
# usage: unpack-packages.sh DIR PACKAGE...
#
# Packages come from the mirrors that apt is configured with. When the machine has no package lists (a fresh image),
# they are fetched into DIR/.apt, so that the machine's own stay as they are. Shared libraries which an unpacked program
# needs and the machine lacks are unpacked too, below the same directory.
set -euo pipefail

die() {
    echo "unpack-packages: $*" >&2
    exit 1
}

[ $# -ge 2 ] || {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing: this works on Debian and its descendants only"
done

mkdir -p "$1"
dir=$(readlink -f "$1")
shift
apt_dir=$dir/.apt
debs=$apt_dir/debs
rm -rf "$debs"
mkdir -p "$debs"
trap 'rm -rf "$debs"' EXIT

# Lists and cache of our own; sources, keys and the list of installed packages stay the machine's.
use_private_lists() {
    mkdir -p "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial"
    {
        echo "Dir::State::lists \"$apt_dir/lists\";"
        echo "Dir::Cache \"$apt_dir/cache\";"
        echo 'Acquire::Languages "none";'
        # The unprivileged user that apt drops to cannot write below a directory of ours.
        [ "$(id -u)" != 0 ] || echo 'APT::Sandbox::User "root";'
    } >"$apt_dir/apt.conf"
    export APT_CONFIG=$apt_dir/apt.conf
    apt-get update -qq || die "apt-get update failed"
}

has_candidate() {
    apt-cache policy "$1" 2>/dev/null | grep '^ *Candidate: [^(]' >/dev/null
}

download() {
    (cd "$debs" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$@")
}

unpack() {
    local deb
    for p in "$@"; do
        has_candidate "$p" || use_private_lists
        has_candidate "$p" || die "no package $p in the configured package sources"
    done
    # The lists may be older than the mirror; one refresh settles that.
    if ! download "$@" 2>/dev/null; then
        use_private_lists
        download "$@" || die "cannot download: $*"
    fi
    for deb in "$debs"/*.deb; do
        dpkg-deb -x "$deb" "$dir"
    done
    rm -f "$debs"/*.deb
}

# Succeeds when some program below the directory wants a library that is neither installed nor unpacked.
lacks_libraries() {
    local libs
    libs=$(find "$dir" -name 'lib*.so*' -not -path '*/.apt/*' -printf '%h\n' | sort -u | paste -sd:)
    find "$dir" -path '*bin/*' -type f -perm -u+x -print0 |
        LD_LIBRARY_PATH=$libs xargs -0 -r -n1 ldd 2>/dev/null | grep 'not found' >/dev/null
}

unpack "$@"
if lacks_libraries; then
    missing=()
    for p in $(apt-cache depends "$@" | sed -n 's/^ *Depends: //p' | grep -v '[<>]' | sort -u); do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep ' installed$' >/dev/null || missing+=("$p")
    done
    [ ${#missing[@]} = 0 ] || unpack "${missing[@]}"
    ! lacks_libraries || die "the programs of $* want libraries that none of their packages has"
fi
