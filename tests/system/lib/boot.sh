# shellcheck shell=bash
# Xen and domain 0 under QEMU's plain emulation: KVM is not asked for, so that it runs everywhere
# and the same everywhere.

QEMU=""

# One vCPU: with two, emulation takes twice as long. qemu64 and not max: a PV domain 0 crashes on a
# CPU with SMAP; +npt is what PVH guests need. Without "noreboot" a crash ends QEMU (-no-reboot).
readonly MACHINE=(
    -machine pc -accel "tcg,thread=multi" -cpu "qemu64,+npt" -m 1280M -smp 1
    -nodefaults -display none -no-reboot -nic none
)
readonly XEN_ARGUMENTS="console=com1 com1=115200,8n1 conring_size=512k dom0_mem=640M,max:640M loglvl=all guest_loglvl=all spec-ctrl=no bootscrub=off"
readonly DOM0_ARGUMENTS="console=hvc0 earlyprintk=xen quiet mitigations=off pmtmr=0"

# boot: starts the machine, with its console on the pipes console.in and console.out.
boot() {
    local folder shares=()
    mkfifo "$PIPES/console.in" "$PIPES/console.out"
    cat "$PIPES/console.out" >"$RESULTS/console.log" &
    for folder in "system=$HERE" "programs=$PROGRAMS_DIR" "images=$IMAGES" "examples=$ROOT/examples/xl"; do
        shares+=(-virtfs "local,mount_tag=${folder%%=*},path=$(escape_commas "${folder#*=}"),security_model=none,readonly=on")
    done
    shares+=(-virtfs "local,mount_tag=results,path=$(escape_commas "$RESULTS"),security_model=none")
    # In the images' folder, since -initrd has no way to say a path with a space in it.
    (
        cd "$IMAGES" || exit
        exec qemu-system-x86_64 "${MACHINE[@]}" "${shares[@]}" \
            -chardev "pipe,id=com1,path=$(escape_commas "$PIPES")/console" -serial chardev:com1 \
            -kernel xen.elf -append "$XEN_ARGUMENTS" -initrd "dom0.vmlinuz $DOM0_ARGUMENTS,dom0.cpio"
    ) </dev/null >"$RESULTS/qemu.log" 2>&1 &
    QEMU=$!
}

escape_commas() { printf '%s' "${1//,/,,}"; }

# running: whether the machine is.
running() { [ -n "$QEMU" ] && kill -0 "$QEMU" 2>/dev/null; }

# shut_down: takes the machine's power away; its files are all outside.
shut_down() {
    running && kill "$QEMU" 2>/dev/null
    [ -n "$QEMU" ] && wait "$QEMU" 2>/dev/null
    QEMU=""
}

# attach_terminal: the user's terminal (descriptor 8) becomes domain 0's, until the shell there ends.
attach_terminal() {
    local settings="" follower typist
    say "A shell in domain 0. Results: /results; leave with: exit"
    say "  run_case NAME runs a case, as the file in tests/system/cases is now; 'help' says more."
    tail -n 0 -f "$RESULTS/console.log" &
    follower=$!
    if [ -t 8 ]; then
        settings=$(stty -g <&8)
        stty raw -echo <&8
    fi
    cat <&8 >"$PIPES/console.in" &
    typist=$!
    while running && ! grep -q '^done' "$RESULTS/progress"; do sleep 0.2; done
    kill "$typist" "$follower" 2>/dev/null || true
    [ -z "$settings" ] || stty "$settings" <&8
}

# split_console: the console's log, as one log of Xen's and one of domain 0's.
split_console() {
    tr -d '\r' <"$RESULTS/console.log" |
        awk -v xen="$RESULTS/xen.log" -v dom0="$RESULTS/dom0.log" '{ print > (/^\(XEN\)/ ? xen : dom0) }'
}

# crash: the line that says that Xen or domain 0 crashed, if one did.
crash() {
    grep -aEm1 'Panic on CPU|Kernel panic|Hardware Dom0 (crashed|halted)|Domain 0 crashed|FATAL' "$RESULTS/console.log"
}
