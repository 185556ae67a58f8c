# shellcheck shell=bash
# Debian's Xen, tools and kernels: fetched and unpacked into a cache, never installed, since
# installing them changes how this machine boots. Works without root: apt gets a state of its own.
#
# Once complete, the cache is used as it is, without the network, until --refresh.

# The packages named here, what they lead to (libraries only), and the images that the two kernel
# packages depend on. Xen's version is the one that xen-system-amd64 stands for.
readonly DOM0_KERNEL_PACKAGE=linux-image-amd64
# The cloud kernel lacks XEN_DOM0, but is small and quick to load.
readonly GUEST_KERNEL_PACKAGE=linux-image-cloud-amd64
# bash, iproute2 and xen-utils-common are for xl's own vif scripts.
readonly PLAIN_PACKAGES=(xenstore-utils busybox-static e2fsprogs bash iproute2 xen-utils-common)

# Left out when unpacking: drivers for hardware that no virtual machine has, and documentation.
readonly LEFT_OUT=(
    --exclude=*/kernel/sound --exclude=*/kernel/drivers/{gpu,media,usb,infiniband,staging,hid,iio,scsi}
    --exclude=*/kernel/drivers/net/{ethernet,wireless,usb,can} --exclude=./usr/share/{doc,man,locale}
)

# apt-get and apt-cache with their state in the cache.
own_apt() {
    local tool=$1
    shift
    "$tool" -q -o "Dir::State=$CACHE/apt/state" -o "Dir::Cache=$CACHE/apt/cache" \
        -o Dir::State::status=/dev/null -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 "$@"
}

# depends_on PACKAGE...: the names that these packages depend on.
depends_on() {
    own_apt apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" |
        sed -n 's/^ *|\?\(Pre\)\?Depends: \([^<].*\)$/\2/p' | sort -u
}

# with_libraries PACKAGE...: these packages, and the libraries that they lead to.
with_libraries() {
    local all="$*" new="$*" found package
    while [ -n "$new" ]; do
        # shellcheck disable=SC2086
        found=$(depends_on $new | grep -E '^(lib|zlib)' || true)
        new=""
        for package in $found; do
            [[ " $all " == *" $package "* ]] && continue
            all="$all $package"
            new="$new $package"
        done
    done
    printf '%s\n' "$all"
}

# resolve_packages: the names of all packages to fetch.
resolve_packages() {
    local xen kernels
    xen=$(depends_on xen-system-amd64 | grep -E '^xen-(hypervisor|utils)-[0-9]' | tr '\n' ' ')
    kernels=$(depends_on "$DOM0_KERNEL_PACKAGE" "$GUEST_KERNEL_PACKAGE" | grep '^linux-image-' | tr '\n' ' ')
    [ -n "$xen" ] || unable "apt knows no xen-system-amd64: are Debian's sources in /etc/apt?"
    [ -n "$kernels" ] || unable "apt knows no $DOM0_KERNEL_PACKAGE: are Debian's sources in /etc/apt?"
    # shellcheck disable=SC2086
    printf '%s %s\n' "$(with_libraries $xen "${PLAIN_PACKAGES[@]}")" "$kernels"
}

# fetch_packages: leaves the unpacked packages in $PACKAGES, with a list of their versions beside it.
fetch_packages() {
    local key fresh packages name
    key=$(sha256sum <"$HERE/lib/packages.sh" | cut -c1-12)
    PACKAGES=$CACHE/packages-$key
    if [ -e "$PACKAGES/versions" ] && [ "$REFRESH" = no ]; then
        touch "$PACKAGES"
        return
    fi
    step "Debian's Xen and kernels (about 110 MB, once) into $CACHE"
    # What an interrupted run left: this one holds the lock.
    rm -rf "$CACHE"/unpacking.*
    mkdir -p "$CACHE"/apt/state/lists/partial "$CACHE"/apt/cache/archives/partial "$CACHE/debs"
    say "   asking apt for the current versions"
    own_apt apt-get update >"$CACHE/apt/log" 2>&1 ||
        unable "apt-get update failed: $(tail -n 3 "$CACHE/apt/log")"
    packages=$(resolve_packages)

    # apt itself resumes what is in partial/ and checks the sums; a package is moved when whole.
    # shellcheck disable=SC2086
    (cd "$CACHE/debs" && own_apt apt-get download $packages) 2>&1 |
        sed -un 's/^Get:[0-9]* .* amd64 \([^ ]*\) [^ ]* \([^ ]* \[.*\]\)$/   \1 \2/p; /^[EW]:/p' >&2 ||
        unable "the download failed; run again to resume"

    fresh=$(mktemp -d "$CACHE/unpacking.XXXXXX")
    : >"$fresh/versions"
    say "   unpacking"
    for name in $packages; do
        unpack_newest "$name" "$fresh"
    done
    # The modules' dependencies are worked out on installation, which does not happen here.
    for name in "$fresh"/root/lib/modules/*; do
        "$fresh/root/bin/busybox" depmod -b "$fresh/root" "$(basename "$name")"
    done
    rm -rf "$PACKAGES"
    mv "$fresh" "$PACKAGES"
    rm -rf "$CACHE/debs"
}

# unpack_newest PACKAGE INTO
unpack_newest() {
    local deb
    # shellcheck disable=SC2012
    deb=$(ls -t "$CACHE/debs/$1"_*.deb 2>/dev/null | head -n 1)
    [ -n "$deb" ] || unable "$1 was not downloaded; run again to resume"
    mkdir -p "$2/root"
    dpkg --fsys-tarfile "$deb" | tar -x -C "$2/root" "${LEFT_OUT[@]}"
    dpkg-deb --show "$deb" >>"$2/versions"
}

# kernel_release cloud|plain: the release of the guest's or domain 0's kernel, as under /lib/modules.
kernel_release() {
    local releases
    releases=$(ls "$PACKAGES/root/lib/modules")
    case $1 in
    cloud) grep -- '-cloud-' <<<"$releases" ;;
    plain) grep -v -- '-cloud-' <<<"$releases" ;;
    esac
}

# version_of PATTERN: the version of the first package whose name matches.
version_of() { awk -v name="$1" '$1 ~ name { print $2; exit }' "$PACKAGES/versions"; }
