# shellcheck shell=bash
# The files that the machine boots from, made of the unpacked packages:
#
#   xen.elf  dom0.vmlinuz  dom0.cpio      given to QEMU
#   guest.vmlinuz  guest.cpio             given by domain 0 to its guests
#
# Cases, scripts and our programs are in none of them: domain 0 sees those folders of this machine
# (over 9p), so that nothing is packed anew when they change.

readonly DOM0_TOOLS=(
    xl libxl-save-helper xenstored xenconsoled xen-init-dom0 lsevtchn e2fsck
    bash ip                                           # for the scripts of vifs
    xenstore-chmod xenstore-control xenstore-exists xenstore-list xenstore-ls xenstore-read xenstore-rm xenstore-watch xenstore-write
)
readonly DOM0_MODULES=(
    9p 9pnet_virtio virtio_pci                        # this machine's folders
    xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs
    loop                                              # block devices to serve
    xen-blkback xen-netback                           # for our frontends
    ext4 crc32c_generic                               # to look into images
    tun bridge
)
readonly GUEST_TOOLS=(e2fsck mke2fs)
readonly GUEST_MODULES=(
    xen-blkfront xen-netfront
    xen-evtchn xen-gntalloc xen-gntdev                # for frontends of ours
)

# make_images: leaves them in $IMAGES.
make_images() {
    local key fresh
    key=$(cat "$PACKAGES/versions" "$HERE/lib/images.sh" "$HERE/dom0/init" "$HERE/guest/init" |
        sha256sum | cut -c1-12)
    IMAGES=$CACHE/images-$key
    if [ ! -e "$IMAGES" ]; then
        step "images of domain 0 and of a guest"
        rm -rf "$CACHE"/packing.*
        fresh=$(mktemp -d "$CACHE/packing.XXXXXX")
        zcat "$PACKAGES"/root/boot/xen-*-amd64.gz >"$fresh/xen.elf"
        cp "$PACKAGES/root/boot/vmlinuz-$(kernel_release plain)" "$fresh/dom0.vmlinuz"
        cp "$PACKAGES/root/boot/vmlinuz-$(kernel_release cloud)" "$fresh/guest.vmlinuz"
        make_root "$fresh/dom0" "$HERE/dom0/init"
        add_tools "$fresh/dom0" "${DOM0_TOOLS[@]}"
        add_modules "$fresh/dom0" plain "${DOM0_MODULES[@]}"
        add_scripts "$fresh/dom0"
        pack "$fresh/dom0"
        make_root "$fresh/guest" "$HERE/guest/init"
        add_tools "$fresh/guest" "${GUEST_TOOLS[@]}"
        add_modules "$fresh/guest" cloud "${GUEST_MODULES[@]}"
        pack "$fresh/guest"
        mv "$fresh" "$IMAGES"
    fi
    touch "$IMAGES"
    # What no run has used for a week.
    find "$CACHE" -mindepth 1 -maxdepth 1 -mtime +7 \
        \( -name 'packages-*' -o -name 'images-*' \) -exec rm -rf {} +
}

# make_root FOLDER INIT: the beginnings of an initramfs: busybox, and INIT as its first process.
make_root() {
    local name
    mkdir -p "$1"/{bin,dev,etc,lib,lib64,mnt,proc,root,run,sys,tmp,usr/bin,usr/lib,var/lib,var/log}
    ln -s /run "$1/var/run"
    ln -s /bin "$1/sbin"
    cp "$PACKAGES/root/bin/busybox" "$1/bin/"
    for name in $("$1/bin/busybox" --list); do
        [ "$name" = busybox ] || ln -s busybox "$1/bin/$name"
    done
    cp "$2" "$1/init"
    chmod 755 "$1/init"
}

# add_tools FOLDER NAME...: programs of the packages, and their libraries.
add_tools() {
    local into=$1 name tool
    shift
    for name in "$@"; do
        tool=$(find "$PACKAGES"/root/usr/lib/xen-*/bin "$PACKAGES"/root/{bin,usr/bin,usr/sbin,sbin} \
            -maxdepth 1 -name "$name" -print -quit)
        [ -n "$tool" ] || unable "no package has the program $name"
        rm -f "$into/bin/$name"
        cp -L "$tool" "$into/bin/"
        add_libraries "$into" "$tool"
    done
    # glibc loads it by name when a thread is cancelled, and aborts without it.
    add_library "$into" libgcc_s.so.1
    # xl looks for its helper where Debian has it.
    name=$(basename "$PACKAGES"/root/usr/lib/xen-*)
    mkdir -p "$into/usr/lib/$name"
    ln -s /bin "$into/usr/lib/$name/bin"
}

# add_scripts FOLDER: xl's own scripts of vifs, and what they read in.
add_scripts() {
    local from=$PACKAGES/root/etc/xen/scripts
    mkdir -p "$1/etc/xen/scripts"
    cp -L "$from"/vif-bridge "$from"/*.sh "$1/etc/xen/scripts/"
    chmod 755 "$1/etc/xen/scripts/vif-bridge"
}

# add_libraries FOLDER BINARY: what BINARY needs, and what that needs.
add_libraries() {
    local library
    for library in $(readelf -d "$2" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        add_library "$1" "$library"
    done
    cp -L "$PACKAGES"/root/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$1/lib64/"
}

add_library() {
    local found
    [ -e "$1/lib/$2" ] && return
    found=$(find "$PACKAGES/root/lib" "$PACKAGES/root/usr/lib" -path '*/modules' -prune -o -name "$2" -print -quit)
    [ -n "$found" ] || unable "no package has the library $2"
    cp -L "$found" "$1/lib/"
    add_libraries "$1" "$found"
}

# add_modules FOLDER plain|cloud NAME...: modules of that kernel, and what they depend on.
add_modules() {
    local into=$1 release from name line path paths
    release=$(kernel_release "$2")
    from=$PACKAGES/root/lib/modules/$release
    shift 2
    mkdir -p "$into/lib/modules/$release"
    for name in "$@"; do
        line=$(grep -E "^[^:]*/$name\.ko[^:]*:" "$from/modules.dep") || unable "the kernel $release has no module $name"
        read -ra paths <<<"${line/:/ }"
        for path in "${paths[@]}"; do
            install -D -m 644 "$from/$path" "$into/lib/modules/$release/$path"
        done
        printf '%s\n' "$line" >>"$into/lib/modules/$release/modules.dep"
        # A line of its own for each dependency: modprobe looks every one of them up.
        for path in "${paths[@]:1}"; do
            grep -E "^$path:" "$from/modules.dep" >>"$into/lib/modules/$release/modules.dep"
        done
    done
    sort -u -o "$into/lib/modules/$release/modules.dep" "$into/lib/modules/$release/modules.dep"
}

# pack FOLDER: as FOLDER.cpio, owned by root, uncompressed: unpacking under emulation costs more.
pack() {
    (cd "$1" && find . | "$PACKAGES/root/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null) >"$1.cpio"
    rm -rf "$1"
}
