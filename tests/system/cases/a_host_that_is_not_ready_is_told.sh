# What a host lacks is said in one line with exit status 2: devices, rights, a xenstored, and that a daemon runs.

# try [COMMAND...]: our backend, run by COMMAND.
try() {
    _status=0
    timeout -s KILL 30 "$@" parapet-blkback >/run/case/said 2>&1 || _status=$?
    echo $_status >/run/case/ended
}

# without DEVICE COMMAND...: with the device hidden; it is there again whatever comes of it.
without() {
    mv "/dev/xen/$1" /dev/hidden
    _hidden=$1
    shift
    "$@"
    mv /dev/hidden "/dev/xen/$_hidden"
}

# not_ready WORDS PATTERN: what try() led to.
not_ready() {
    cat /run/case/said
    expect "exit status: $1" "$(cat /run/case/ended)" = 2
    expect "lines: $1" "$(wc -l </run/case/said)" = 1
    check "$1: the line says so" grep -qE "^parapet-blkback: .*$2" /run/case/said
}

for device in gntdev evtchn; do
    without $device try
    not_ready "no $device" "/dev/xen/$device .*modprobe xen-$device"
done

printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >/etc/passwd
try su -s /bin/sh nobody -c
not_ready "no rights" "permission.*root"

mount -t tmpfs none /proc/xen
without xenbus try env XENSTORED_PATH=/nowhere
umount /proc/xen
not_ready "no xenstored" "no xenstore.*/nowhere.*xenstored running"

: >/run/case/file
try sh -c '"$0" --run-dir /run/case/file/folder'
not_ready "no folder to run in" "/run/case/file/folder.*--run-dir"

blkback
try
not_ready "a second daemon" "runs already \\(process $(pid_of blkback)\\)"
check "the first one ends when asked to, with status 0" end_daemon blkback
refuse "status without a daemon" parapet-blkback status
