# Sourced by the other scripts (POSIX sh). Everything that is made here lands in .work/, which git ignores.
# shellcheck shell=sh

root=$(cd "$(dirname "$0")/.." && pwd)
work=$root/.work
mkdir -p "$work"
# Where it is a link, engines are found again by the folder itself.
work=$(cd "$work" && pwd -P)

say() { printf '%-13s %s\n' "$1" "$2" >&2; }
die() { say "$1" "$2"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
# rustup's own place, for shells that have not read its env file.
have cargo || PATH=$HOME/.cargo/bin:$PATH
# The docker command that scripts/engine finds for a machine that has none.
PATH=$PATH:$work/bin
is_root() { [ "$(id -u)" = 0 ]; }

# hash_of FILE-OR-TEXT... : a short fingerprint of what a step was made from.
hash_of() {
    for part in "$@"; do
        if [ -f "$part" ]; then cat "$part"; else printf '%s\n' "$part"; fi
    done | sha256sum | cut -c1-12
}

# stamped DIR FINGERPRINT : true when DIR was finished from exactly this recipe.
stamped() { [ "$(cat "$1/.made-from" 2>/dev/null)" = "$2" ]; }

# packages NAME... : Debian packages, only where we may install them; otherwise one line that says what to do.
packages() {
    if ! have apt-get; then die "missing" "install $* with your package manager and start again"; fi
    if ! is_root; then die "missing" "run: sudo apt-get install $*"; fi
    say "packages" "apt-get install $*"
    log=$work/apt.log
    {
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y --no-install-recommends "$@" ||
            { apt-get update && apt-get install -y --no-install-recommends "$@"; }
    } </dev/null >>"$log" 2>&1 || { tail -n 5 "$log" >&2; die "packages" "apt-get failed; all of it: $log"; }
}

# timed NAME COMMAND... : one line with what a step did and how long it took. Quick steps say nothing.
timed() {
    step=$1; shift
    began=$(date +%s)
    "$@" || return
    took=$(($(date +%s) - began))
    [ "$took" -lt 2 ] || say "$step" "done in $took s"
}

# rust_target TARGET : true when the standard library of TARGET is installed; rustup is asked for it where it is missing. What it
# says goes to .work/rustup.log.
rust_target() {
    [ -d "$(rustc --print target-libdir --target "$1")" ] && return
    have rustup || return
    say "rust" "rustup target add $1"
    timeout 300 rustup target add "$1" </dev/null >"$work/rustup.log" 2>&1 && [ -d "$(rustc --print target-libdir --target "$1")" ]
}
