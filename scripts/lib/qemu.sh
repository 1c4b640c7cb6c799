# shellcheck shell=bash
# Getting a QEMU. Sourced by scripts/setup after common.sh; needs its run_apt, update_lists and install_packages.
#
# The distribution's package where it can be installed. Where installing it would remove something else (a
# newer qemu-utils from backports does that), the packages are only unpacked, under the cache, and run from there.
# Debian 12's 7.2 is a good one; 10.0's emulation of nested virtualisation is broken, which only the Xen lab needs.

# apt_would_remove PACKAGE : true when installing it takes something away, or cannot be done.
apt_would_remove() {
    local plan
    plan=$(LC_ALL=C apt-get install -s --no-install-recommends "$1" 2>/dev/null) || return 0
    printf '%s\n' "$plan" | grep -q '^Remv '
}

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# not_installed_closure PACKAGE : it and everything it depends on that this machine does not have.
not_installed_closure() {
    local queue=("$1") seen=" $1 " package kind name alternative_met
    while [ ${#queue[@]} -gt 0 ]; do
        package=${queue[0]}
        queue=("${queue[@]:1}")
        printf '%s\n' "$package"
        alternative_met=''
        # "|Depends" opens a list of alternatives that a plain "Depends" closes; <x> is a virtual name.
        while read -r kind name; do
            case $kind in '|Depends:' | '|PreDepends:' | 'Depends:' | 'PreDepends:') ;; *) continue ;; esac
            name=${name%%:*}
            if is_installed "$name"; then alternative_met=yes; fi
            if [ -z "$alternative_met" ] && [ "${name#<}" = "$name" ]; then
                case $seen in *" $name "*) ;; *) seen="$seen$name "; queue+=("$name") ;; esac
                alternative_met=yes
            fi
            case $kind in '|'*) ;; *) alternative_met='' ;; esac
        done < <(LC_ALL=C apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$package")
    done
}

unpack_qemu() {
    local root=$ABD_CACHE/qemu/root package packages
    mapfile -t packages < <(not_installed_closure qemu-system-x86)
    say "QEMU: unpacking ${#packages[@]} packages under $ABD_CACHE/qemu (installing them would remove others): ${packages[*]}"
    rm -rf "$ABD_CACHE/qemu"
    mkdir -p "$ABD_CACHE/qemu/bin" "$root" "$ABD_CACHE/qemu/debs"
    (cd "$ABD_CACHE/qemu/debs" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "${packages[@]}") >&2 ||
        die "QEMU's packages could not be downloaded"
    for package in "$ABD_CACHE/qemu/debs"/*.deb; do dpkg-deb -x "$package" "$root"; done
    rm -rf "$ABD_CACHE/qemu/debs"
    cat > "$ABD_CACHE/qemu/bin/qemu-system-x86_64" <<WRAPPER
#!/bin/sh
# Runs the QEMU that scripts/setup unpacked, with its own libraries and firmware. exec: the process id stays ours.
root='$root'
LD_LIBRARY_PATH="\$root/usr/lib/x86_64-linux-gnu:\$root/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
QEMU_MODULE_DIR="\$root/usr/lib/x86_64-linux-gnu/qemu"
export LD_LIBRARY_PATH QEMU_MODULE_DIR
exec "\$root/usr/bin/qemu-system-x86_64" -L "\$root/usr/share/qemu" -L "\$root/usr/share/seabios" -L "\$root/usr/lib/ipxe/qemu" "\$@"
WRAPPER
    chmod +x "$ABD_CACHE/qemu/bin/qemu-system-x86_64"
}

# An unpacked QEMU is replaced only by a working one: install_qemu is called when none works.
install_qemu() {
    have apt-get || die "this is not a Debian or Ubuntu machine. Install qemu-system-x86_64 (7.2 or later) by hand"
    update_lists
    if apt_would_remove qemu-system-x86; then
        unpack_qemu
    else
        say "missing: qemu-system-x86    runs the appliance in the lab"
        install_packages qemu-system-x86
    fi
}
