# shellcheck shell=bash
# What every script here shares: how it speaks, where it keeps things, which QEMU it runs.
# Sourced, never run:   . "$(dirname "$0")/lib/common.sh"
#
# Sets    ABD_REPO   the repository's root
#         ABD_CACHE  everything worth keeping between runs and outside the tree (default ~/.cache/abd)
# Offers  say warn die  ·  have need_tool  ·  sha256_of  ·  as_root  ·  qemu_bin use_qemu

# Without this, `set -e` ends at every $(...), and a failed step inside goes on.
shopt -s inherit_errexit

ABD_REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ABD_CACHE=${ABD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/abd}
export ABD_REPO ABD_CACHE

# rustup puts cargo where a login shell finds it; cron and `su -c` are none.
if ! command -v cargo >/dev/null 2>&1 && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi
# Disk tools live where only root's PATH looks, and need no root for what we do with them.
case ":$PATH:" in *:/usr/sbin:*) ;; *) PATH="$PATH:/usr/sbin:/sbin" ;; esac
export PATH

ABD_ROOM=${ABD_ROOM:-$(basename "$0")}

# One line per event: `room: what happened`. Progress goes to stderr, so that stdout stays for answers.
say()  { printf '%s: %s\n' "$ABD_ROOM" "$*" >&2; }
warn() { printf '%s: warning: %s\n' "$ABD_ROOM" "$*" >&2; }
die()  { printf '%s: error: %s\n' "$ABD_ROOM" "$*" >&2; exit 1; }

have() { command -v "$1" >/dev/null 2>&1; }

# need_tool TOOL... : all there, or one sentence that says how to get them.
need_tool() {
    local tool missing=()
    for tool; do have "$tool" || missing+=("$tool"); done
    [ ${#missing[@]} -eq 0 ] || die "not on this machine: ${missing[*]}. Run scripts/setup first; it installs what is missing."
}

sha256_of() { sha256sum -- "$1" | cut -d' ' -f1; }

# as_root COMMAND... : as it is for root, through sudo otherwise; fails (2) when there is neither.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif have sudo; then sudo -- "$@"
    else return 2
    fi
}

# A QEMU works for us when it starts, has the BIOS machine and can emulate. /dev/kvm is never used:
# one that opens is not always one that runs a guest.
qemu_works() {
    [ -x "$1" ] && "$1" --version >/dev/null 2>&1 &&
        "$1" -accel help 2>/dev/null | grep -qx tcg &&
        "$1" -machine help 2>/dev/null | grep -q '^pc '
}

# qemu_bin : prints the QEMU to use: $ABD_QEMU, the one on PATH, or the one that scripts/setup unpacked.
qemu_bin() {
    local found
    if [ -n "${ABD_QEMU:-}" ]; then
        qemu_works "$ABD_QEMU" || die "ABD_QEMU=$ABD_QEMU is not a working qemu-system-x86_64"
        printf '%s\n' "$ABD_QEMU"
        return
    fi
    for found in "$(command -v qemu-system-x86_64 || true)" "$ABD_CACHE/qemu/bin/qemu-system-x86_64"; do
        if [ -n "$found" ] && qemu_works "$found"; then printf '%s\n' "$found"; return; fi
    done
    return 1
}

# use_qemu : exports ABD_QEMU for the programs this script starts.
use_qemu() {
    ABD_QEMU=$(qemu_bin) || die "no working qemu-system-x86_64. Run scripts/setup lab first."
    export ABD_QEMU
}
