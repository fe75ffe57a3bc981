#!/bin/bash
# Provides the programs that the real ring compares with and runs under: runc, crun, criu, a static busybox, shells and
# mke2fs in target/peers/bin, each containerd of the matrix (with its own ctr and stock shim) in target/peers/containerd-N/bin
# and each dockerd (with its command line and the init that it gives to containers) in target/peers/docker-N/bin.
# The oldest containerd is the one in target/peers/bin too.
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

# Each line: the folder, empty for DIR itself; the package; the version that the tests were written against (an extended
# regular expression on the first line of --version, empty for any); Debian's suite with it, empty for the machine's own;
# the programs, the first of which answers to --version.
#
# runc stays the machine's: that of a newer suite wants a newer libc. criu brings its own libc along, because the one of
# Debian 12 (3.17) does not understand the vDSO of a present kernel.
peers="
containerd-1.6|containerd|1\.6\.|bookworm|containerd ctr containerd-shim-runc-v2
containerd-1.7|containerd|1\.7\.|trixie|containerd ctr containerd-shim-runc-v2
containerd-2.1|containerd|2\.1\.|forky|containerd ctr containerd-shim-runc-v2
docker-20.10|docker.io|20\.10\.|bookworm|dockerd docker docker-proxy
docker-20.10|tini|||tini-static
docker-28.5|docker.io|28\.5\.|forky|dockerd docker-proxy
docker-28.5|docker-cli|28\.5\.|forky|docker
docker-28.5|tini|||tini-static
|runc|1\.[1-9]||runc
|crun|||crun
|criu|4\.|trixie|criu
|busybox-static|||busybox
|e2fsprogs|||mke2fs
|zsh|||zsh
|fish|||fish
"

stamp=$dir/.complete
key=$(cat "$here/peers.sh" "$here/unpack-packages.sh" | cksum)
complete() {
    local folder programs p
    [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] || return 1
    while IFS='|' read -r folder _ _ _ programs; do
        for p in $programs; do
            [ -x "$dir/$folder/bin/$p" ] || return 1
        done
    done <<<"$peers"
}

is_static() {
    LC_ALL=C ldd "$1" 2>&1 | grep -e 'not a dynamic executable' -e 'statically linked' >/dev/null
}

has_version() {
    [ -z "$2" ] || "$1" --version 2>/dev/null | head -1 | grep -E "[ v]$2" >/dev/null
}

# The installed program of that name, if it is fit for use.
installed() {
    local path
    path=$(command -v "$1") || return 1
    [ "$1" != busybox ] || is_static "$path" || return 1
    has_version "$path" "$2" || return 1
    echo "$path"
}

# A program unpacked below $1 finds its unpacked libraries, and the loader that belongs to them, by a wrapper; others by
# a plain link.
expose() {
    local root=$1 bin=$2 name=$3 path libs loader
    path=$(find "$root" -path "*bin/$name" -type f -perm -u+x | head -1)
    [ -n "$path" ] || {
        echo "peers: the package has no program $name" >&2
        return 1
    }
    rm -f "$bin/$name"
    libs=$(find "$root" -name 'lib*.so*' -printf '%h\n' | sort -u | paste -sd:)
    loader=$(find "$root" -path '*lib64/ld-linux*.so.*' | head -1)
    if [ -z "$libs" ]; then
        ln -sr "$path" "$bin/$name"
    elif [ -n "$loader" ]; then
        printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "$loader" "$libs" "$path" >"$bin/$name"
        chmod 755 "$bin/$name"
    else
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libs" "$path" >"$bin/$name"
        chmod 755 "$bin/$name"
    fi
}

# Whether the machine's own package sources have the version.
is_own() {
    [ -z "$2" ] || LC_ALL=C apt-cache policy "$1" 2>/dev/null | grep -E "^ *Candidate: $2" >/dev/null
}

provide() {
    local folder=$1 package=$2 version=$3 suite=$4 first path p name bin root
    shift 4
    first=$1
    name=$package${folder:+ ${folder##*-}}
    bin=$dir/${folder:+$folder/}bin
    root=$dir/${folder:+$folder/}$package
    mkdir -p "$bin"
    if path=$(installed "$first" "$version"); then
        for p in "$@"; do
            path=$(command -v "$p") || {
                echo "peers: $first is installed and $p is not" >&2
                return 1
            }
            ln -sfn "$path" "$bin/$p"
        done
        echo "peers: $name is installed"
        return
    fi
    # What an interrupted run or another version left would be found beside the new.
    rm -rf "$root"
    if [ -z "$suite" ] || is_own "$package" "$version"; then
        "$here/unpack-packages.sh" "$root" "$package" || return 1
    else
        "$here/unpack-packages.sh" --suite "$suite" "$root" "$package" || return 1
    fi
    for p in "$@"; do
        expose "$root" "$bin" "$p" || return 1
    done
    path=$("$bin/$first" --version 2>/dev/null | head -1) || path=
    echo "peers: unpacked $name${path:+ ($path)}"
    has_version "$bin/$first" "$version" ||
        echo "peers: warning: the tests were written against $package ${version//\\/}, and this is: ${path:-a program that does not run}" >&2
}

complete && exit 0
missing=()
while IFS='|' read -r folder package version suite programs; do
    [ -n "$package" ] || continue
    # shellcheck disable=SC2086 # a list of words
    provide "$folder" "$package" "$version" "$suite" $programs </dev/null || missing+=("${folder:-$package}")
done <<<"$peers"
for p in containerd ctr containerd-shim-runc-v2; do
    ln -sfn "../containerd-1.6/bin/$p" "$dir/bin/$p"
done
[ ${#missing[@]} = 0 ] || {
    echo "peers: could not provide: ${missing[*]}" >&2
    exit 1
}
echo "$key" >"$stamp"
