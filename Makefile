# holdfast: build, install, test. `make help` lists the targets.
#
# Cargo does the work and decides what is out of date; this file knows what cargo cannot: where libseccomp comes from,
# which programs are static, where the results go. Everything it makes lies in target/ and bin/.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS   += --no-builtin-rules
.DEFAULT_GOAL := build

CARGO    ?= cargo
PREFIX   ?= /usr/local
DESTDIR  ?=
BINDIR   ?= $(PREFIX)/bin
MANDIR   ?= $(PREFIX)/share/man
DATADIR  ?= $(PREFIX)/share
UNITDIR  ?= $(PREFIX)/lib/systemd/system
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
CONFDIR  ?= /etc/holdfast
FORCE    ?= 0

# Where cargo builds; the sysroot and the peers stay in target/.
TARGET   := $(or $(CARGO_TARGET_DIR),target)
HOST     := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
SHIM     := containerd-shim-holdfast-v2
# The same shim under a name that starts with runc's: some clients match runtimes by the prefix io.containerd.runc.
SHIM_AS_RUNC := containerd-shim-runc-v2-holdfast
PROGRAMS := $(SHIM) holdfast-oci holdfastd holdfast
COUNTER  := $(TARGET)/$(HOST)/release/counter
# As below UNITDIR.
UNITS    := $(patsubst systemd/%,%,$(wildcard $(addprefix systemd/,*.service *.socket *.slice *.target *.service.d/*.conf)))

# crt-static together with an explicit --target reaches the programs only. Without --target it would reach build scripts
# and proc-macros as well, and a proc-macro cannot be static.
CARGO_STATIC  = RUSTFLAGS="$${RUSTFLAGS-} -C target-feature=+crt-static" \
                $(CARGO) build --release --locked --target $(HOST)

.PHONY: build sysroot install uninstall peers test test-vm matrix bench bench-compare bench-readme demo demo-live-restore check clean help FORCE

## build: the four programs, static, into bin/
# One cargo call for each package: together, the features of one would reach the other, and the shim would carry
# parts of libcontainer.
build: sysroot
	@$(CARGO_STATIC) -p holdfast-shim --no-default-features --bin $(SHIM)
	$(CARGO_STATIC) -p holdfast-shim --bin holdfast-oci
	$(CARGO_STATIC) -p holdfast-supervisor --bin holdfastd --bin holdfast
	mkdir -p bin
	for p in $(PROGRAMS); do
	    cmp -s "$(TARGET)/$(HOST)/release/$$p" "bin/$$p" && continue
	    # By rename: the old program may be running.
	    cp "$(TARGET)/$(HOST)/release/$$p" "bin/.$$p.new"
	    mv -f "bin/.$$p.new" "bin/$$p"
	    echo "bin/$$p"
	done

# The payload of the demonstration and of some tests: it runs in a root file system that holds nothing else.
$(COUNTER): FORCE
	@$(CARGO_STATIC) -p holdfast-tests --bin counter

## sysroot: the static libseccomp, from the machine or else from its distribution's package
sysroot: target/sysroot/lib/libseccomp.a

target/sysroot/lib/libseccomp.a:
	@mkdir -p $(@D)
	lib=
	for d in $$(cc -print-file-name=libseccomp.a) /usr/lib/$$(cc -dumpmachine)/libseccomp.a /usr/lib64/libseccomp.a /usr/lib/libseccomp.a; do
	    case $$d in /*) [ ! -f "$$d" ] || lib=$$d ;; esac
	done
	if [ -z "$$lib" ]; then
	    tests/unpack-packages.sh target/sysroot/package libseccomp-dev || {
	        echo "error: libseccomp's development files are not installed, and its package cannot be had." >&2
	        echo "Install them (Debian: libseccomp-dev, Fedora: libseccomp-static, Alpine: libseccomp-static) and run make again." >&2
	        exit 1
	    }
	    lib=$$PWD/$$(find target/sysroot/package/usr/lib -name libseccomp.a | head -1)
	fi
	ln -sfn "$$lib" $@

## peers: containerd, dockerd, runc, crun and busybox for the tests, unpacked into target/peers where not installed
peers:
	@tests/peers.sh

## check: formatting and lints, as errors
check: sysroot
	@$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

## test: the three rings; the real one needs root
test: build peers
	@tests/run.sh

## test-vm: what needs systemd and cgroup v2: in namespaces of this machine, then in an emulated one; needs root
test-vm: build peers
	@tests/vm/run.sh

## matrix: README's tables of what works where, from the last run of the tests
matrix:
	@$(CARGO) run --quiet --locked -p holdfast-tests --bin matrix -- write target README.md

## bench: holdfast beside its peers, into target/bench (BENCH_ARGS=--full for all of it, "--only output" for a part)
# Static, since the printer runs in a root file system of its own; bench finds it beside itself.
bench: build peers
	@$(CARGO_STATIC) -p holdfast-tests --bin bench --bin printer
	HOLDFAST_TEST_DIR="$${HOLDFAST_TEST_DIR:-/dev/shm}" $(TARGET)/$(HOST)/release/bench run $(BENCH_ARGS)

## bench-compare: what has changed since an older run: make bench-compare OLD.json
bench-compare: $(filter %.json,$(MAKECMDGOALS))
	@$(CARGO) run --quiet --locked -p holdfast-tests --bin bench -- compare $(or $(OLD),$^)

## bench-readme: README's tables of numbers, from the last run of the benchmark
bench-readme:
	@$(CARGO) run --quiet --locked -p holdfast-tests --bin bench -- readme

## demo: a container that outlives its managers, shown in a minute
demo: build $(COUNTER)
	@COUNTER=$(abspath $(COUNTER)) tests/demo.sh

## demo-live-restore: Docker's daemons go and come back above containerd's shim and above this one; needs root
demo-live-restore: build peers
	@$(CARGO) test --quiet --locked -p holdfast-tests --test docker_live_restore what_becomes -- --nocapture

# Replaces $(2) by $(1) with mode $(3), by rename: whoever runs or reads the old file keeps it.
define put
install -D -m $(3) "$(1)" "$(2).tmp"
mv -f "$(2).tmp" "$(2)"
endef

## install: programs, units, man pages, completions, default configuration (PREFIX=/usr/local DESTDIR=)
install: $(PROGRAMS:%=bin/%)
	@for p in $(PROGRAMS); do
	    $(call put,bin/$$p,$(DESTDIR)$(BINDIR)/$$p,755)
	done
	ln -sfn $(SHIM) "$(DESTDIR)$(BINDIR)/$(SHIM_AS_RUNC)"
	for u in $(UNITS); do
	    sed 's|/usr/local/bin/|$(BINDIR)/|g' "systemd/$$u" >target/unit
	    $(call put,target/unit,$(DESTDIR)$(UNITDIR)/$$u,644)
	    rm -f target/unit
	done
	$(call put,systemd/tmpfiles.d/holdfast.conf,$(DESTDIR)$(TMPFILESDIR)/holdfast.conf,644)
	$(call put,systemd/sysusers.d/holdfast.conf,$(DESTDIR)$(SYSUSERSDIR)/holdfast.conf,644)
	for f in holdfastd.toml shim.toml; do
	    conf="$(DESTDIR)$(CONFDIR)/$$f"
	    if [ ! -e "$$conf" ]; then
	        $(call put,systemd/$$f,$$conf,644)
	    elif ! cmp -s "systemd/$$f" "$$conf"; then
	        $(call put,systemd/$$f,$$conf.new,644)
	        echo "$$conf was edited and stays; the new default is $$conf.new"
	    fi
	done
	rm -rf target/man && mkdir -p target/man
	bin/holdfast man target/man
	for m in target/man/*.[1-9]; do
	    $(call put,$$m,$(DESTDIR)$(MANDIR)/man$${m##*.}/$${m##*/},644)
	done
	bin/holdfast completions bash >target/man/bash
	bin/holdfast completions zsh >target/man/zsh
	bin/holdfast completions fish >target/man/fish
	$(call put,target/man/bash,$(DESTDIR)$(DATADIR)/bash-completion/completions/holdfast,644)
	$(call put,target/man/zsh,$(DESTDIR)$(DATADIR)/zsh/site-functions/_holdfast,644)
	$(call put,target/man/fish,$(DESTDIR)$(DATADIR)/fish/vendor_completions.d/holdfast.fish,644)

$(PROGRAMS:%=bin/%):
	@$(MAKE) build

## uninstall: removes what install put there, but not the configuration; refuses while tasks live (FORCE=1 overrides)
# containerd drops the bundle of a task whose shim program is gone, and kills nothing: the container would be nobody's.
uninstall:
	@tests/live-tasks.sh || [ "$(FORCE)" = 1 ] || {
	    echo "error: these tasks would lose their shim's program; stop them first, or say FORCE=1" >&2
	    exit 1
	}
	for p in $(PROGRAMS) $(SHIM_AS_RUNC); do rm -f "$(DESTDIR)$(BINDIR)/$$p"; done
	for u in $(UNITS); do rm -f "$(DESTDIR)$(UNITDIR)/$$u"; done
	# A directory of drop-ins may hold others' files.
	for d in $(sort $(filter %.d/,$(dir $(UNITS)))); do
	    rmdir --ignore-fail-on-non-empty "$(DESTDIR)$(UNITDIR)/$$d" 2>/dev/null || true
	done
	rm -f "$(DESTDIR)$(TMPFILESDIR)/holdfast.conf" "$(DESTDIR)$(SYSUSERSDIR)/holdfast.conf"
	rm -f "$(DESTDIR)$(MANDIR)"/man[1-9]/holdfast*.[1-9] "$(DESTDIR)$(DATADIR)/bash-completion/completions/holdfast" \
	    "$(DESTDIR)$(DATADIR)/zsh/site-functions/_holdfast" "$(DESTDIR)$(DATADIR)/fish/vendor_completions.d/holdfast.fish"
	[ ! -e "$(DESTDIR)$(CONFDIR)" ] || echo "$(DESTDIR)$(CONFDIR) stays"

## clean: removes target/ and bin/
clean:
	@rm -rf target bin

## help: this list
help:
	@sed -n 's/^## \([a-z-]*\): /\1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  %-18s %s\n", $$1, $$2 }'
