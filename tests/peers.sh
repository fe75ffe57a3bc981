#!/bin/bash
# Provides the programs that the real ring compares with and runs under, in target/peers/bin:
# containerd (with ctr and its stock shim), runc, crun, and a static busybox for root file systems.
#
# usage: peers.sh [DIR]        default DIR: target/peers
#
# What is installed in the right version is linked; the rest is unpacked from the distribution's packages into DIR and
# never installed, since a package of that name could replace one of another origin. Quick when nothing is to be done.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
dir=${1:-$here/../target/peers}
mkdir -p "$dir/bin"
dir=$(readlink -f "$dir")

# Each line: package, the version that the tests were written against (an extended regular expression on the first line
# of --version, empty for any), then its programs, the first of which answers to --version.
peers="
containerd|1\.6\.20|containerd ctr containerd-shim-runc-v2
runc|1\.[1-9]|runc
crun||crun
busybox-static||busybox
"

stamp=$dir/.complete
key=$(cat "$here/peers.sh" "$here/unpack-packages.sh" | cksum)
complete() {
    local p
    [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] || return 1
    for p in containerd ctr containerd-shim-runc-v2 runc crun busybox; do
        [ -x "$dir/bin/$p" ] || return 1
    done
}

is_static() {
    LC_ALL=C ldd "$1" 2>&1 | grep -e 'not a dynamic executable' -e 'statically linked' >/dev/null
}

# The installed program of that name, if it is fit for use.
installed() {
    local path
    path=$(command -v "$1") || return 1
    [ "$1" != busybox ] || is_static "$path" || return 1
    [ -z "$2" ] || "$path" --version 2>/dev/null | grep -E "[ v]$2" >/dev/null || return 1
    echo "$path"
}

# A program unpacked below $1 finds its unpacked libraries by a wrapper, others by a plain link.
expose() {
    local root=$1 name=$2 path libs
    path=$(find "$root" -path "*bin/$name" -type f -perm -u+x | head -1)
    [ -n "$path" ] || {
        echo "peers: the package has no program $name" >&2
        return 1
    }
    rm -f "$dir/bin/$name"
    libs=$(find "$root" -name 'lib*.so*' -printf '%h\n' | sort -u | paste -sd:)
    if [ -z "$libs" ]; then
        ln -s "$path" "$dir/bin/$name"
    else
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libs" "$path" >"$dir/bin/$name"
        chmod 755 "$dir/bin/$name"
    fi
}

provide() {
    local package=$1 version=$2 first path p
    shift 2
    first=$1
    if path=$(installed "$first" "$version"); then
        for p in "$@"; do
            path=$(command -v "$p") || {
                echo "peers: $first is installed and $p is not" >&2
                return 1
            }
            ln -sfn "$path" "$dir/bin/$p"
        done
        echo "peers: $package is installed"
        return
    fi
    "$here/unpack-packages.sh" "$dir/$package" "$package" || return 1
    for p in "$@"; do
        expose "$dir/$package" "$p" || return 1
    done
    path=$("$dir/bin/$first" --version 2>/dev/null | head -1) || path=
    echo "peers: unpacked $package${path:+ ($path)}"
    [ -z "$version" ] || echo "$path" | grep -E "[ v]$version" >/dev/null ||
        echo "peers: warning: the tests were written against $package $version" >&2
}

complete && exit 0
status=0
while IFS='|' read -r package version programs; do
    [ -n "$package" ] || continue
    # shellcheck disable=SC2086 # a list of words
    provide "$package" "$version" $programs </dev/null || status=1
done <<<"$peers"
[ $status != 0 ] || echo "$key" >"$stamp"
exit $status
