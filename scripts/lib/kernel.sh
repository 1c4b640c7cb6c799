# shellcheck shell=bash
# The kernel: a pinned source, the fragments of kernel-config/, a bzImage in the cache. Sourced by scripts/image,
# scripts/setup and scripts/lib/pin-kernel, after common.sh.
#
# Promises  the source's hash is checked before a byte of it is used; the same inputs give the same cache entry
#           and are never built twice; the tree stays clean: everything lies under $ABD_CACHE/kernel.
# Never     takes another version than source.lock says, whatever apt offers.
#
# Offers    kernel_source    prints the path of the checked tarball, fetching it if it must
#           kernel_build     prints the directory with bzImage, config, kernel.json

# Raise when the way of building changes and old cache entries would be wrong.
KERNEL_BUILDER=1
KERNEL_LOCK=$ABD_REPO/kernel-config/source.lock
# What the release is made of, in this order; scripts/image adds debug on demand.
# shellcheck disable=SC2034  # read by the scripts that source this
KERNEL_RELEASE_FRAGMENTS="base net storage xen lab"
# Unpacked source, objects and tarball; measured 2.1 GB.
KERNEL_DISK_MB=3000
# Lines that `make` prints for the release config, for the progress line only.
KERNEL_STEPS_ABOUT=1910

lock_value() {
    local value
    value=$(sed -n "s/^$1[[:space:]]*=[[:space:]]*//p" "$KERNEL_LOCK")
    [ -n "$value" ] || die "$KERNEL_LOCK has no line '$1 = ...'"
    printf '%s\n' "$value"
}

has_sha256() { [ -f "$1" ] && [ "$(sha256_of "$1")" = "$2" ]; }

# keep_source FILE SHA256 : moves a fetched tarball into the cache if it is the right one.
keep_source() {
    local sum
    sum=$(sha256_of "$1")
    [ "$sum" = "$2" ] || { rm -f "$1"; die "kernel source has the wrong hash and was deleted: wanted $2, got $sum"; }
    mv "$1" "$ABD_CACHE/kernel/source/$2.tar.xz"
    printf '%s\n' "$ABD_CACHE/kernel/source/$2.tar.xz"
}

# Any user can do this: `apt-get download` needs no root and leaves the installed package alone.
source_from_apt() {
    local package version file dir
    package=$(lock_value debian.package) version=$(lock_value debian.version) file=$(lock_value debian.file)
    dir=$(mktemp -d "$ABD_CACHE/kernel/source/fetch.XXXXXX")
    # apt drops to a user that may not read our cache; it says so at length and then works as us.
    if (cd "$dir" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$package=$version") >&2; then
        dpkg-deb --fsys-tarfile "$dir/$package"_*.deb | tar -xf - -O "./$file" > "$dir/source.tar.xz" ||
            die "$package $version holds no $file"
        keep_source "$dir/source.tar.xz" "$(lock_value debian.sha256)"
        rm -rf "$dir"
        return 0
    fi
    rm -rf "$dir"
    return 1
}

source_from_kernel_org() {
    local url tarball
    url=$(lock_value kernel-org.url)
    tarball=$(mktemp "$ABD_CACHE/kernel/source/fetch.XXXXXX")
    say "kernel source: $url"
    if ! curl --proto '=https' --fail --location --silent --show-error --retry 3 --output "$tarball" "$url" >&2; then
        rm -f "$tarball"
        die "could not download $url. Fetch it where you can and name it: ABD_KERNEL_TARBALL=/path/to/tarball scripts/image"
    fi
    keep_source "$tarball" "$(lock_value kernel-org.sha256)"
}

kernel_source() {
    local sum installed
    mkdir -p "$ABD_CACHE/kernel/source"
    if [ -n "${ABD_KERNEL_TARBALL:-}" ]; then
        [ -f "$ABD_KERNEL_TARBALL" ] || die "ABD_KERNEL_TARBALL=$ABD_KERNEL_TARBALL does not exist"
        sum=$(sha256_of "$ABD_KERNEL_TARBALL")
        case $sum in
            "$(lock_value debian.sha256)" | "$(lock_value kernel-org.sha256)" | "${ABD_KERNEL_SHA256:-none}") ;;
            *) die "ABD_KERNEL_TARBALL has sha256 $sum, which is not in kernel-config/source.lock. If it is what you mean to build, say so: ABD_KERNEL_SHA256=$sum" ;;
        esac
        printf '%s\n' "$ABD_KERNEL_TARBALL"
        return
    fi
    installed=/$(lock_value debian.file)
    for sum in "$(lock_value debian.sha256)" "$(lock_value kernel-org.sha256)"; do
        if has_sha256 "$ABD_CACHE/kernel/source/$sum.tar.xz" "$sum"; then
            printf '%s\n' "$ABD_CACHE/kernel/source/$sum.tar.xz"
            return
        fi
        if has_sha256 "$installed" "$sum"; then printf '%s\n' "$installed"; return; fi
    done
    if have apt-cache && [ -n "$(apt-cache madison "$(lock_value debian.package)" 2>/dev/null)" ]; then
        say "kernel source: $(lock_value debian.package) $(lock_value debian.version) by apt-get download (about 150 MB)"
        source_from_apt && return
        die "apt knows $(lock_value debian.package), but not the pinned version $(lock_value debian.version) any more.
  It offers: $(apt-cache madison "$(lock_value debian.package)" | awk -F'|' '{gsub(/ /,"",$2); print $2}' | sort -Vru | tr '\n' ' ')
  To move the pin on purpose: scripts/lib/pin-kernel, then build, test and commit kernel-config/source.lock.
  To keep it: fetch the old package where it still is and name the tarball inside with ABD_KERNEL_TARBALL."
    fi
    source_from_kernel_org
}

# The options alone: a better comment must not cost a kernel build.
fragment_options() {
    local name
    for name; do sed -n '/^CONFIG_/p' "$ABD_REPO/kernel-config/$name.fragment"; done
}

# kernel_key SOURCE_SHA256 FRAGMENT... : the name of the cache entry.
kernel_key() {
    local source_sha=$1
    shift
    { echo "builder $KERNEL_BUILDER"; echo "source $source_sha"
      LC_ALL=C gcc --version | head -1; LC_ALL=C ld --version | head -1
      fragment_options "$@"; } | sha256sum | cut -d' ' -f1
}

# Runs make in the background and says every quarter of a minute how far it is.
make_with_progress() {
    local log=$1 pid started=$SECONDS ticks=0
    shift
    nice "$@" > "$log" 2>&1 &
    pid=$!
    # shellcheck disable=SC2064  # the pid is known here and nowhere else
    trap "kill $pid 2>/dev/null; exit 130" INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        ticks=$((ticks + 1))
        if [ $((ticks % 15)) -eq 0 ]; then
            say "kernel: $(grep -c '^  ' "$log" || true) of about $KERNEL_STEPS_ABOUT steps, $((SECONDS - started)) s"
        fi
    done
    trap - INT TERM
    if ! wait "$pid"; then
        tail -n 30 "$log" >&2
        die "the kernel did not build; the whole log is $log"
    fi
}

# Free space, in MB, where a directory lies.
free_mb() { df --output=avail -m "$1" | tail -1 | tr -d ' '; }

# kernel_build FRAGMENT... : prints the cache entry, building it if it is not there.
kernel_build() {
    local tarball source_sha key entry work started=$SECONDS release free
    need_tool gcc ld make flex bison bc cpio zstd xz python3 flock
    mkdir -p "$ABD_CACHE/kernel"
    # Two builds at once would each take twice as long: the second waits and finds the entry.
    exec 9> "$ABD_CACHE/kernel/lock"
    flock -n 9 || { say "kernel: waiting for another build"; flock 9; }

    tarball=$(kernel_source)
    source_sha=$(sha256_of "$tarball")
    key=$(kernel_key "$source_sha" "$@")
    entry=$ABD_CACHE/kernel/$key
    if [ -f "$entry/bzImage" ]; then
        say "kernel: cached, $entry"
        exec 9>&-
        printf '%s\n' "$entry"
        return
    fi

    # A fixed place per key: objtool's paths are in the objects, so a moved tree is rebuilt from nothing.
    work=$ABD_CACHE/kernel/work/$key
    rm -rf "$work" "$entry.part"
    mkdir -p "$work/source" "$work/out" "$entry.part"
    free=$(free_mb "$work")
    [ "$free" -ge "$KERNEL_DISK_MB" ] ||
        die "a kernel build needs $KERNEL_DISK_MB MB in $ABD_CACHE, $free MB are free. ABD_CACHE=<dir> moves the cache."
    say "kernel: unpacking ${tarball##*/}"
    tar -xf "$tarball" -C "$work/source" --strip-components=1

    # The same bytes from the same inputs, whoever builds, wherever and whenever.
    export KBUILD_BUILD_TIMESTAMP='2023-11-14 22:13:20 UTC' KBUILD_BUILD_USER=abd KBUILD_BUILD_HOST=abd KBUILD_BUILD_VERSION=1
    fragment_options "$@" > "$work/abd.config"
    say "kernel: configuring ($*)"
    make -s -C "$work/source" O="$work/out" KCONFIG_ALLCONFIG="$work/abd.config" allnoconfig > "$work/configure.log" 2>&1 ||
        { tail -n 20 "$work/configure.log" >&2; die "the kernel did not configure; the whole log is $work/configure.log"; }
    "$ABD_REPO/scripts/lib/check-kernel-config" --config "$work/out/.config" "$@" >&2 || die "the kernel configuration is not what kernel-config/ asks for"

    say "kernel: building with $(nproc) jobs; 5 to 15 minutes on two cores, then cached"
    make_with_progress "$work/build.log" make -C "$work/source" O="$work/out" -j"$(nproc)" bzImage

    release=$(cat "$work/out/include/config/kernel.release")
    cp "$work/out/arch/x86/boot/bzImage" "$entry.part/bzImage"
    cp "$work/out/.config" "$entry.part/config"
    printf '{"version": "%s", "source_sha256": "%s", "fragments": "%s", "key": "%s"}\n' \
        "$release" "$source_sha" "$*" "$key" > "$entry.part/kernel.json"
    mv "$entry.part" "$entry"
    [ -n "${ABD_KEEP_KERNEL_BUILD:-}" ] || rm -rf "$work"
    exec 9>&-
    say "kernel: $release built in $((SECONDS - started)) s, $(stat -c %s "$entry/bzImage") bytes, $entry"
    printf '%s\n' "$entry"
}
