# shellcheck shell=sh disable=SC2119,SC2120
# The words of cases about disks, on top of those of lib.sh. The lines that begin with ## are the
# reference.

## blkback [VARIABLE=VALUE...]   starts our backend with $BLKBACK_OPTIONS, and waits until it serves
blkback() {
    # shellcheck disable=SC2086 # they are words
    daemon blkback env "$@" parapet-blkback --log debug ${BLKBACK_OPTIONS:-}
    wait_for 30 "our backend serves" parapet-blkback status
}

## known_disk NAME MIB   a disk with content that is nowhere else
known_disk() { dd if=/dev/urandom "of=/disks/$1" bs=1M "count=$2" 2>/dev/null; }

## line VDEV r|w TARGET [SCRIPT]   a disk, as xl has it
line() { echo "format=raw, vdev=$1, access=$2, ${4:+script=$4, }target=$3"; }

## attach GUEST VDEV r|w TARGET    to a running guest, and waits until that has it
attach() {
    quietly "xl attaches $2" xl block-attach "$1" "$(line "$2" "$3" "$4" block-parapet)"
    in_guest "$1" "until [ -b /dev/$2 ]; do sleep 0.1; done"
}

## detach GUEST VDEV
detach() { quietly "xl detaches $2" timeout -s KILL 60 xl block-detach "$1" "$2"; }

## vbd VDEV              the number of a disk: 51712 for xvda
vbd() { echo $((51712 + 16 * ($(printf '%d' "'${1#xvd}") - 97))); }

## node GUEST back|front VDEV      the directory of one of a disk's ends in the xenstore
node() {
    case $2 in
    back) echo "/local/domain/0/backend/vbd/$(xl domid "$1")/$(vbd "$3")" ;;
    front) echo "/local/domain/$(xl domid "$1")/device/vbd/$(vbd "$3")" ;;
    esac
}

## paused_guest NAME LINE...  a guest that never runs, with these disks: its frontends say what we write
paused_guest() {
    _name=$1
    shift
    # Any kernel will do: this one is quick to load.
    printf 'name = "%s"\ntype = "pvh"\nkernel = "/images/xen.elf"\nmemory = 32\ndisk = [\n' "$_name" >/run/case/paused.cfg
    printf "'%s',\n" "$@" >>/run/case/paused.cfg
    echo ']' >>/run/case/paused.cfg
    quietly "xl creates the guest $_name, paused" xl create -q -p /run/case/paused.cfg
}

## state_is GUEST back|front VDEV STATE   whether it is; for wait_for
state_is() { [ "$(xenstore-read "$(node "$1" "$2" "$3")/state")" = "$4" ]; }

## counters GUEST VDEV   what our backend has counted: "N reads, N sectors; N writes, N sectors; N flushes"
counters() {
    _n='{"requests":\([0-9]*\),"sectors":\([0-9]*\)'
    parapet-blkback status --json | sed 's/{"frontend"/\n&/g' |
        sed -n "s/^{\"frontend\":$(xl domid "$1"),\"number\":$(vbd "$2"),.*\"reads\":$_n.*\"writes\":$_n.*\"flushes\":$_n.*/\1 reads, \2 sectors; \3 writes, \4 sectors; \5 flushes/p" |
        tail -n 1
}

## counted_by GUEST VDEV  the same, as the guest's kernel has counted it, once nothing is under way
# Linux counts a flush of its own, as fsync makes one, as a write of no sectors, too.
counted_by() {
    in_guest "$1" "sync
        until read -r r w </sys/block/$2/inflight && [ \$r\$w = 00 ]; do sleep 0.1; done
        set -- \$(cat /sys/block/$2/stat)
        echo \$1 reads, \$3 sectors\\; \$((\$5 - \${16})) writes, \$7 sectors\\; \${16} flushes"
}

## sum FILE              of a file in domain 0
sum() { md5sum <"$1"; }

## sum_in GUEST FILE     of a file or disk in a guest, read anew
sum_in() { in_guest "$1" "sync; echo 3 >/proc/sys/vm/drop_caches; md5sum <$2"; }

## io_under_way GUEST VDEV    reads and writes that go on in a guest, and are seen to
io_under_way() {
    start_in_guest "$1" "
        touch /tmp/io
        while [ -e /tmp/io ]; do dd if=/dev/urandom of=/dev/$2 bs=64k count=32 conv=fsync,notrunc; done &
        while [ -e /tmp/io ]; do dd if=/dev/$2 of=/dev/null bs=64k count=32 iflag=direct; done
        wait"
    for _ in 1 2; do
        _counted=$(counters "$1" "$2")
        wait_for 60 "I/O is under way" moves "$1" "$2" "$_counted"
    done
}
# Reads and writes both: the first word of the counters that differs is not enough.
moves() {
    _now_counted=$(counters "$1" "$2")
    [ "${_now_counted%%;*}" != "${3%%;*}" ] && [ "${_now_counted#*;}" != "${3#*;}" ]
}

## reads_and_writes GUEST VDEV FILE   size, content, writes, a flush; and both ends count the same
reads_and_writes() {
    expect "the size of $2" "$(in_guest "$1" "blockdev --getsize64 /dev/$2")" = "$(wc -c <"$3")"
    expect "what $2 holds" "$(sum_in "$1" "/dev/$2")" = "$(sum "$3")"
    _counted=$(counters "$1" "$2")
    check "write to $2, and flush" in_guest "$1" \
        "dd if=/dev/urandom of=/tmp/new bs=64k count=32 && dd if=/tmp/new of=/dev/$2 bs=64k seek=16 conv=fsync,notrunc"
    expect "what $3 holds then, where it was written" \
        "$(dd "if=$3" bs=64k skip=16 count=32 2>/dev/null | md5sum)" = "$(sum_in "$1" /tmp/new)"
    expect "what all of $3 holds" "$(sum "$3")" = "$(sum_in "$1" "/dev/$2")"
    expect "flushes" "$(flushes "$(counters "$1" "$2")")" -gt "$(flushes "$_counted")"
    counts_agree "$1" "$2"
}
flushes() { echo "$1" | sed 's/.* \([0-9]*\) flushes/\1/'; }

## counts_agree GUEST VDEV    our backend has counted what the guest did, exactly
# Not for a disk with a journal on it: that has writes that flush, which Linux counts as one.
counts_agree() {
    _counted=$(counted_by "$1" "$2")
    expect "what was counted of $2" "$(counters "$1" "$2")" = "$_counted"
}

# mke2fs by its path, since the shell has a lesser one of its own.
## keeps_files GUEST VDEV FILE ext2|ext4   a file system that both the guest and domain 0 find right
keeps_files() {
    check "make $4, and copy files" in_guest "$1" "
        /bin/mke2fs -q -F -t $4 /dev/$2 && mount -t $4 /dev/$2 /mnt && cp -r /lib /mnt &&
        (cd /mnt && find lib -type f -exec md5sum {} + >sums) && umount /mnt"
    check "the guest finds the file system clean" in_guest "$1" "e2fsck -f -n /dev/$2"
    check "the guest finds its files" in_guest "$1" "
        echo 3 >/proc/sys/vm/drop_caches
        mount -t $4 -o ro /dev/$2 /mnt && cd /mnt && md5sum -c sums >/tmp/sums && cd / && umount /mnt"
    check "domain 0 finds the file system clean" e2fsck -f -n "$3"
    modprobe -a loop crc32c_generic ext4
    mount -t "$4" -o loop,ro "$3" /mnt || fail "domain 0 cannot mount $3"
    (cd /mnt && md5sum -c sums >/run/case/sums) || fail "files in $3: $(grep -v OK /run/case/sums)"
    umount /mnt
    expect "how many files there are" "$(wc -l </run/case/sums)" -gt 5
}

## refuses_writes GUEST VDEV FILE     of a read-only disk
refuses_writes() {
    _before=$(sum "$3")
    expect "what the guest knows of $2" "$(in_guest "$1" "cat /sys/block/$2/ro")" = 1
    refuse "a write to $2" in_guest "$1" "dd if=/dev/zero of=/dev/$2 bs=4k count=1 conv=fsync,notrunc"
    refuse "a mount of $2 to write" in_guest "$1" "mount -t ext2 -o rw /dev/$2 /mnt"
    expect "what $2 holds" "$(sum_in "$1" "/dev/$2")" = "$_before"
    expect "what $3 holds" "$(sum "$3")" = "$_before"
}

## both_at_once GUEST VDEV FILE VDEV FILE    two disks written and read at the same time
both_at_once() {
    check "write to $2 and $4 at once" in_guest "$1" "
        for disk in $2 $4; do
            dd if=/dev/urandom of=/tmp/\$disk bs=64k count=32 2>/dev/null
            { dd if=/tmp/\$disk of=/dev/\$disk bs=16k conv=fsync,notrunc
            echo \$? >/tmp/\$disk.status; } &
        done
        wait; [ \"\$(cat /tmp/$2.status /tmp/$4.status)\" = \"\$(printf '0\n0')\" ]"
    in_guest "$1" "echo 3 >/proc/sys/vm/drop_caches
        for disk in $2 $4; do dd if=/dev/\$disk bs=16k count=128 2>/dev/null | md5sum >/tmp/\$disk.read & done; wait"
    for _pair in "$2 $3" "$4 $5"; do
        _disk=${_pair% *}
        _written=$(sum_in "$1" "/tmp/$_disk")
        expect "what was read of $_disk" "$(in_guest "$1" "cat /tmp/$_disk.read")" = "$_written"
        expect "what ${_pair#* } holds" "$(head -c 2097152 "${_pair#* }" | md5sum)" = "$_written"
    done
    in_guest "$1" "rm /tmp/$2* /tmp/$4*"
}

## stop_io GUEST         ends what io_under_way began, of which nothing may have failed
stop_io() {
    in_guest "$1" "rm /tmp/io; while pgrep dd; do sleep 0.1; done >/dev/null"
    refuse "the guest saw an error" in_guest "$1" "grep -v records /tmp/background.log"
}

## negotiated GUEST VDEV   what the guest's own kernel says that it agreed on with our backend
negotiated() { grep -o "blkfront: $2: .*" "/results/console/guest-$1.log" | tr -d '\r'; }

## uses_every_feature GUEST VDEV FILE   of a disk with two queues: as the guest's own kernel has it
uses_every_feature() {
    # What the kernel has said comes after the next command's output.
    in_guest "$1" "until [ -b /dev/$2 ]; do sleep 0.1; done"
    for _feature in "flush diskcache" "persistent grants" "indirect descriptors"; do
        check "the guest's kernel says so: $_feature" sh -c "echo '$(negotiated "$1" "$2")' | grep -q '$_feature: enabled'"
    done
    expect "queues of $2" "$(in_guest "$1" "ls /sys/block/$2/mq | wc -l")" = 2
    expect "sectors of one request of $2" "$(in_guest "$1" "cat /sys/block/$2/queue/max_segments")" -gt 11
    expect "what can be discarded at once" "$(in_guest "$1" "cat /sys/block/$2/queue/discard_max_bytes")" -gt 0
    reads_and_writes "$1" "$2" "$3"
    expect "room that $3 takes" "$(stat -c %b "$3")" -gt 0
    check "discard all of $2" in_guest "$1" "blkdiscard /dev/$2"
    expect "room that $3 takes then" "$(stat -c %b "$3")" = 0
    expect "what $2 holds then" "$(sum_in "$1" "/dev/$2")" = "$(sum "$3")"
}

## has_sectors GUEST VDEV COUNT   whether the guest knows of so many; for wait_for
has_sectors() { [ "$(in_guest "$1" "cat /sys/block/$2/size")" = "$3" ]; }

## verified_io GUEST VDEV MIB   writes, flushes and reads back without end; each round is another part of the disk
verified_io() {
    start_in_guest "$1" "
        touch /tmp/io
        dd if=/dev/urandom of=/tmp/random bs=64k count=20
        # Or there would be moments without a request.
        while [ -e /tmp/io ]; do dd if=/dev/$2 of=/dev/null bs=1M iflag=direct; done &
        round=0
        while [ -e /tmp/io ]; do
            round=\$((round + 1))
            tail -c +\$((round % 997 + 1)) /tmp/random | head -c 1048576 >/tmp/new
            dd if=/tmp/new of=/dev/$2 bs=64k seek=\$((round % $3 * 16)) conv=fsync,notrunc || echo BAD: not written
            echo 3 >/proc/sys/vm/drop_caches
            dd if=/dev/$2 bs=64k skip=\$((round % $3 * 16)) count=16 | cmp - /tmp/new || echo BAD: round \$round
            echo \$round >/tmp/rounds
        done
        wait
        touch /tmp/over"
    wait_for 60 "I/O is under way" goes_on "$1" "$2" "0 reads, 0 sectors; 0 writes, 0 sectors; 0 flushes"
}
# A daemon that has just started counts from zero.
goes_on() {
    _now_counted=$(counters "$1" "$2")
    [ -n "$_now_counted" ] && moves "$1" "$2" "$3"
}

## killed_and_started GUEST VDEV [SIGNAL]   our backend goes without a word in the middle of I/O, and another comes
killed_and_started() {
    end_daemon blkback "${3:-KILL}" || :
    blkback
    wait_for 60 "I/O goes on" goes_on "$1" "$2" "0 reads, 0 sectors; 0 writes, 0 sectors; 0 flushes"
}

## survives_kills NAME pv|pvh TIMES   a guest with a file and a block device, whose backend is killed so many times
survives_kills() {
    modprobe loop
    known_disk data 16
    known_disk device 16
    _loop=$(losetup -f)
    losetup "$_loop" /disks/device
    blkback
    guest "$1" "$2" "disk = ['$(line xvda rw /disks/data)', '$(line xvdb rw "$_loop")']"
    _domid=$(xl domid "$1")
    _console=/results/console/guest-$1.log
    in_guest "$1" true
    _lines=$(wc -l <"$_console")
    _back=/local/domain/0/backend/vbd/$_domid
    _nodes=$(xenstore-ls -f "$_back" | md5sum)
    verified_io "$1" xvdb 16
    for _ in $(seq "$3"); do killed_and_started "$1" xvdb; done
    # Whether requests are under way at the moment of a kill is chance: until it has been so.
    for _ in $(seq 30); do
        ! grep -q 'requests were in flight' /results/daemon-blkback.log || break
        killed_and_started "$1" xvdb
    done
    # As by an upgrade.
    killed_and_started "$1" xvdb TERM
    expect "how often it went on" "$(grep -c 'goes on where' /results/daemon-blkback.log)" -ge "$3"
    check "some requests were in flight" grep 'requests were in flight' /results/daemon-blkback.log
    in_guest "$1" "rm /tmp/io; until [ -e /tmp/over ]; do sleep 0.1; done"
    refuse "the guest saw an error" in_guest "$1" "grep -v records /tmp/background.log"
    expect "rounds" "$(in_guest "$1" "cat /tmp/rounds")" -gt 3
    # The other disk had nothing in flight, and is served as well.
    end_daemon blkback KILL || :
    blkback
    check "write to xvda, and flush" in_guest "$1" \
        "dd if=/tmp/random of=/dev/xvda bs=64k count=16 seek=16 conv=fsync,notrunc"
    expect "what xvda holds" "$(sum_in "$1" /dev/xvda)" = "$(sum /disks/data)"
    expect "what xvdb holds" "$(sum_in "$1" /dev/xvdb)" = "$(sum "$_loop")"
    expect "the backend's nodes" "$(xenstore-ls -f "$_back" | md5sum)" = "$_nodes"
    in_guest "$1" true
    tail -n +"$_lines" "$_console" | grep -v '^|' >/run/case/kernel || :
    refuse "the guest's kernel said something" grep -iE 'xvd|vbd|blk|i/o|hung|stall' /run/case/kernel
    guest_off "$1"
    expect "what is left" "$(leftovers "$_domid")" = "grants=0 ports=0 backends=0"
    expect "journals that are left" "$(find /run/parapet -name '*.journal' | wc -l)" = 0
    check "the device is free" losetup -d "$_loop"
}
