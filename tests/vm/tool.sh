#!/bin/bash
# Runs a program of DIR/tools, see image.sh: with the libraries and the loader that belong to it, whatever this machine has.
#
# usage: tool.sh DIR PROGRAM [ARG...]
set -euo pipefail

tools=$1/tools
program=$2
shift 2
for bin in bin sbin; do
    [ ! -x "$tools/usr/$bin/$program" ] || path=$tools/usr/$bin/$program
done
libraries=$tools/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR=$libraries/qemu
exec "$tools/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" "${path?no such tool: $program}" "$@"
