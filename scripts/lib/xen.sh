# shellcheck shell=bash
# The Xen lab's files: a hypervisor, a kernel and a root file system for its control domain, all of Debian's packages.
# Sourced by scripts/xen-lab, scripts/setup and scripts/test, after common.sh.
#
# Promises  needs no root and installs nothing: packages are fetched and unpacked under $ABD_CACHE/xen; the same
#           packages give the same cache entry and are never fetched twice.
#
# Offers    xen_why_not   prints why this machine cannot have the lab; prints nothing where it can
#           xen_files     prints the directory with xen, vmlinuz and dom0.cpio.zst, making it if it must
#           xen_dom0      writes the control domain's whole root file system

XEN_LIB=$ABD_REPO/scripts/lib/xen
# Names the dependency that has the real name of the kernel's package.
XEN_KERNEL=linux-image-amd64
# Later ones emulate a guest's reads of control registers wrongly: HVM and PVH guests die at once.
XEN_QEMU=7.2
# Raise when the way of unpacking changes and old cache entries would be wrong.
XEN_BUILDER=1

xen_packages() {
    sed '/^#/d; s/^[a-z]* *//' "$XEN_LIB/packages" | tr -s ' ' '\n' | sort -u
    LC_ALL=C apt-cache depends "$XEN_KERNEL" | sed -n 's/^ *Depends: //p'
}

# xen_candidates : `apt-get download` lines, `'address' file size hash`, of what apt would fetch now.
xen_candidates() {
    local packages
    mapfile -t packages < <(xen_packages)
    apt-get -qq -o APT::Sandbox::User="$(id -un)" download --print-uris "${packages[@]}"
}

xen_why_not() {
    local qemu system=''
    # shellcheck source=/dev/null
    [ ! -f /etc/os-release ] || system=$(. /etc/os-release && echo "$ID $VERSION_ID")
    [ "$system" = "debian 12" ] || { echo "it is made of Debian 12's packages, and this is ${system:-another system}"; return; }
    [ "$(uname -m)" = x86_64 ] || { echo "it is made for x86-64"; return; }
    qemu=$(qemu_bin) || { echo "no working QEMU; run scripts/setup lab"; return; }
    "$qemu" --version | grep -q "version $XEN_QEMU\\." ||
        echo "it needs QEMU $XEN_QEMU: later ones emulate nested virtualisation wrongly, and $qemu is another"
}

# The modules of the kernel in $1 that the list names, and those they need, into the root in $2.
xen_modules() {
    local from=$1 to=$2 version file
    version=$(ls "$from/lib/modules")
    "$to/bin/busybox" depmod -b "$from" "$version"
    sed 's/-/_/g' "$XEN_LIB/modules" | awk '
        NR == FNR { wanted[$1] = 1; next }
        { file = $1; sub(/:$/, "", file); name = file; sub(/.*\//, "", name); sub(/\.ko$/, "", name); gsub(/-/, "_", name)
          if (name in wanted) { print file; for (i = 2; i <= NF; i++) print $i; delete wanted[name] } }
        END { for (name in wanted) { print "no module " name > "/dev/stderr"; exit 1 } }
    ' - "$from/lib/modules/$version/modules.dep" | sort -u | while read -r file; do
        mkdir -p "$to/lib/modules/$version/$(dirname "$file")"
        cp "$from/lib/modules/$version/$file" "$to/lib/modules/$version/$file"
    done
    cp "$from/lib/modules/$version/modules.builtin" "$to/lib/modules/$version/"
    "$to/bin/busybox" depmod -b "$to" "$version"
}

# xen_unpack DEBS OUT : the three files from the packages.
xen_unpack() {
    local debs=$1 out=$2 root=$2/root kernel=$2/kernel package
    mkdir -p "$root" "$kernel"
    for package in "$debs"/*.deb; do
        case ${package##*/} in
            linux-image-*) dpkg-deb -x "$package" "$kernel" ;;
            *) dpkg-deb -x "$package" "$root" ;;
        esac
    done
    gzip -dc "$root"/boot/xen-4.17-amd64.gz > "$out/xen"
    cp "$kernel"/boot/vmlinuz-* "$out/vmlinuz"
    # Debian's names of the programs choose among versions; what the lab runs has one.
    rm -f "$root"/usr/sbin/{xl,oxenstored,xenstored,xenconsoled}
    rm -rf "${root:?}"/{boot,etc/xen/scripts} "$root"/usr/share/{doc,man,locale,lintian,bash-completion,perl5,zsh,bug,gdb,xml} \
        "$root"/usr/share/{qemu-firmware,OVMF} "$root"/usr/share/ovmf/*.{key,pem} \
        "$root"/usr/lib/xen-4.17/boot/xen-shim "$root"/usr/lib/python3* \
        "$root"/usr/lib/x86_64-linux-gnu/{gconv,gstreamer-1.0,audit}
    # The device model wants a keyboard's map; firmware of other machines is left out.
    find "$root/usr/share/qemu" -mindepth 1 -maxdepth 1 ! -name keymaps -exec rm -rf {} +
    mkdir -p "$root"/etc/xen/scripts "$root"/{proc,sys,dev,run,tmp,root}
    xen_modules "$kernel" "$root"
    (cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0) | zstd -q -3 -T0 > "$out/dom0.cpio.zst"
    rm -rf "$root" "$kernel"
}

# xen_dom0 FILES OUT : the control domain's root file system: the packages' and, laid over it, our few scripts.
xen_dom0() {
    local files=$1 out=$2 root
    root=$(mktemp -d)
    mkdir -p "$root"/etc/xen/scripts "$root"/usr/sbin
    cp "$XEN_LIB/dom0-init" "$root/init"
    cp "$XEN_LIB"/{modules,udhcpd.conf} "$root/etc/xen/"
    cp "$XEN_LIB/destroy-guests" "$root/usr/sbin/"
    cp "$XEN_LIB"/{block,vif-bridge} "$root/etc/xen/scripts/"
    chmod -R u=rwX,go=rX "$root"
    chmod 755 "$root"/init "$root"/usr/sbin/* "$root"/etc/xen/scripts/*
    { cat "$files/dom0.cpio.zst"; cd "$root" && find . | cpio -o -H newc --quiet -R 0:0 | zstd -q; } > "$out"
    rm -rf "$root"
}

# xen_entry CANDIDATES : the cache entry that is made of them.
xen_entry() {
    local key
    key=$({ printf '%s\n' "$1" | cut -d' ' -f2,4; echo "builder $XEN_BUILDER"; cat "$XEN_LIB"/{packages,modules}; } | sha256sum | cut -c1-16)
    printf '%s\n' "$ABD_CACHE/xen/$key"
}

xen_is_there() {
    local candidates
    candidates=$(xen_candidates 2>/dev/null) && [ -f "$(xen_entry "$candidates")/dom0.cpio.zst" ]
}

xen_files() {
    local candidates entry part why started=$SECONDS
    need_tool apt-get apt-cache dpkg-deb cpio zstd gzip flock
    why=$(xen_why_not)
    [ -z "$why" ] || die "the Xen lab cannot run here: $why"
    mkdir -p "$ABD_CACHE/xen/debs"
    exec 8> "$ABD_CACHE/xen/lock"
    flock 8
    candidates=$(xen_candidates) || die "apt does not know all packages of the Xen lab (scripts/lib/xen/packages). Run apt-get update as root first."
    entry=$(xen_entry "$candidates")
    if [ ! -f "$entry/dom0.cpio.zst" ]; then
        part=$ABD_CACHE/xen/part
        rm -rf "$part"
        mkdir -p "$part"
        xen_fetch "$candidates" "$ABD_CACHE/xen/debs"
        xen_unpack "$ABD_CACHE/xen/debs" "$part"
        # Entries of other packages are of no use any more.
        find "$ABD_CACHE/xen" -mindepth 1 -maxdepth 1 -type d ! -name debs ! -name part -exec rm -rf {} +
        mv "$part" "$entry"
        say "Xen: unpacked in $((SECONDS - started)) s, $(du -sm "$entry" | cut -f1) MB, $entry"
    fi
    exec 8>&-
    printf '%s\n' "$entry"
}

# What is there is not fetched again; what belongs to other versions goes.
xen_fetch() {
    local candidates=$1 debs=$2 file packages names
    names=$(printf '%s\n' "$candidates" | cut -d' ' -f2)
    for file in "$debs"/*.deb; do
        [ ! -e "$file" ] || printf '%s\n' "$names" | grep -qxF "${file##*/}" || rm -f "$file"
    done
    say "Xen: $(printf '%s\n' "$candidates" | xen_missing "$debs") to fetch (scripts/lib/xen/packages)"
    mapfile -t packages < <(xen_packages)
    # apt checks what it finds there against its hash, and fetches what is missing.
    (cd "$debs" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "${packages[@]}") >&2 ||
        die "the Xen lab's packages could not be downloaded"
}

# How many packages, and how many bytes, are not there yet.
xen_missing() {
    local file size count=0 bytes=0
    while read -r _ file size _; do
        [ -e "$1/$file" ] || { count=$((count + 1)); bytes=$((bytes + size)); }
    done
    echo "$count packages, $(((bytes + 999999) / 1000000)) MB"
}
