#!/bin/bash
# Unpacks packages of this machine's distribution below a directory. Installs nothing.
#
# usage: unpack-packages.sh [--suite SUITE [--whole]] DIR PACKAGE...
#
# Packages come from the mirrors that apt is configured with. When the machine has no package lists (a fresh image),
# they are fetched into DIR/.apt, so that the machine's own stay as they are. Shared libraries which an unpacked program
# needs and the machine lacks are unpacked too, below the same directory.
#
# --suite takes the packages from another suite of the same mirror (a newer Debian, say), again with lists of its own.
# --whole unpacks all that they depend on too, as if nothing at all were installed: what comes out can be a root filesystem.
#
# Exit status 3: the mirror does not have them, or cannot be reached.
set -euo pipefail

die() {
    echo "unpack-packages: $*" >&2
    exit 1
}

die_without() {
    echo "unpack-packages: $*" >&2
    exit 3
}

suite=
whole=false
if [ "${1-}" = --suite ]; then
    suite=${2-}
    shift 2
    if [ "${1-}" = --whole ]; then
        whole=true
        shift
    fi
fi
[ $# -ge 2 ] || {
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
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

# The mirror that the machine has its own release from, whatever else it is configured with: others have no -updates.
own_mirror() {
    local release uris name mirror=
    # shellcheck disable=SC1091 # a file of the machine
    release=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    # Known without package lists too, unlike what indextargets prints.
    uris=$(apt-get --print-uris update 2>/dev/null) || return 0
    for name in "$release-updates" "$release"; do
        # The first alone; a pipe to head would end in SIGPIPE.
        mirror=$(sed -n "s|^'\(.*\)/dists/$name/InRelease'.*|\1|p" <<<"$uris")
        mirror=${mirror%%$'\n'*}
        [ -z "$mirror" ] || break
    done
    echo "$mirror"
}

# Lists and cache of our own; sources, keys and the list of installed packages stay the machine's. Of a suite that is not
# the machine's, the sources are ours as well.
use_private_lists() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial"
    {
        echo "Dir::State::lists \"$apt_dir/lists\";"
        echo "Dir::Cache \"$apt_dir/cache\";"
        echo 'Acquire::Languages "none";'
        # The unprivileged user that apt drops to cannot write below a directory of ours.
        [ "$(id -u)" != 0 ] || echo 'APT::Sandbox::User "root";'
    } >"$apt_dir/apt.conf"
    if [ -n "$suite" ]; then
        [ -e "$keyring" ] && keyring="[signed-by=$keyring] " || keyring=
        echo "deb $keyring$mirror $suite main" >"$apt_dir/sources.list"
        {
            echo "Dir::Etc::sourcelist \"$apt_dir/sources.list\";"
            echo 'Dir::Etc::sourceparts "/dev/null";'
            echo 'Dir::Etc::preferencesparts "/dev/null";'
        } >>"$apt_dir/apt.conf"
    fi
    if $whole; then
        : >"$apt_dir/status"
        echo "Dir::State::status \"$apt_dir/status\";" >>"$apt_dir/apt.conf"
    fi
    export APT_CONFIG=$apt_dir/apt.conf
    # apt reports a suite that is not there as a warning only.
    apt-get update -qq -o APT::Update::Error-Mode=any || die_without "apt-get update failed${suite:+ for the suite $suite}"
}

has_candidate() {
    apt-cache policy "$1" 2>/dev/null | grep '^ *Candidate: [^(]' >/dev/null
}

download() {
    (cd "$debs" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "${@/%/${suite:+/$suite}}")
}

unpack() {
    local deb
    for p in "$@"; do
        has_candidate "$p" || use_private_lists
        has_candidate "$p" || die_without "no package $p in ${suite:-the configured package sources}"
    done
    # The lists may be older than the mirror; one refresh settles that.
    if ! download "$@" 2>/dev/null; then
        use_private_lists
        download "$@" || die_without "cannot download: $*"
    fi
    for deb in "$debs"/*.deb; do
        dpkg-deb -x "$deb" "$dir"
    done
    rm -f "$debs"/*.deb
}

# With everything that they depend on, and in an order of no meaning: no package's scripts are run.
unpack_whole() {
    local deb
    use_private_lists
    apt-get install -qq -y --download-only --no-install-recommends "$@" >"$apt_dir/log" 2>&1 || {
        tail -5 "$apt_dir/log" >&2
        die_without "cannot download: $*"
    }
    for deb in "$apt_dir"/cache/archives/*.deb; do
        dpkg-deb -x "$deb" "$dir"
        rm -f "$deb"
    done
}

# What each program below the directory is linked with, by the unpacked loader where there is one. A script has nothing
# of the kind, which says nothing about the programs beside it.
list_libraries() {
    local libs loader program
    libs=$(find "$dir" -name 'lib*.so*' -not -path '*/.apt/*' -printf '%h\n' | sort -u | paste -sd:)
    loader=$(find "$dir" -path '*lib64/ld-linux*.so.*' | head -1)
    while IFS= read -r -d '' program; do
        if [ -n "$loader" ]; then
            "$loader" --library-path "$libs" --list "$program"
        else
            LD_LIBRARY_PATH=$libs ldd "$program"
        fi 2>&1 || true
    done < <(find "$dir" -path '*bin/*' -type f -perm -u+x -print0)
}

# Succeeds when some program below the directory wants a library, or a version of one, that is neither installed nor
# unpacked. What comes with a loader of its own is from another release, for which an installed one is none.
lacks_libraries() {
    local list
    list=$(list_libraries)
    grep -e 'not found' -e 'cannot open shared object file' <<<"$list" >/dev/null || {
        [ -n "$(find "$dir" -path '*lib64/ld-linux*.so.*')" ] && grep '=> /' <<<"$list" | grep -vF "=> $dir/" >/dev/null
    }
}

# An installed library is of use to what comes from the same release only.
is_installed() {
    [ -z "$suite" ] && dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep ' installed$' >/dev/null
}

if [ -n "$suite" ]; then
    # Before apt is told to look at our sources instead.
    mirror=$(own_mirror)
    [ -n "$mirror" ] || die_without "apt is configured with no mirror of this machine's release to take $suite from"
    if $whole; then
        unpack_whole "$@"
        rm -rf "$apt_dir"
        exit
    fi
    use_private_lists
fi
unpack "$@"
# A library may want further ones: each round unpacks what the packages of the round before depend on.
round=("$@")
while lacks_libraries; do
    missing=()
    for p in $(apt-cache depends "${round[@]}" | sed -n 's/^ *Depends: //p' | grep -v '[<>]' | sort -u); do
        is_installed "$p" || missing+=("$p")
    done
    [ ${#missing[@]} != 0 ] || die "the programs of $* want libraries that none of their packages has"
    unpack "${missing[@]}"
    round=("${missing[@]}")
done
# The lists of a whole suite are large, and stale by the time they were of use again.
[ -z "$suite" ] || rm -rf "$apt_dir"
