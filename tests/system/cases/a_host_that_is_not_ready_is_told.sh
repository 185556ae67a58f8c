# What a host lacks is said in one line with exit status 2: devices, rights, a xenstored, and that a daemon runs.

for device in gntdev evtchn; do
    without $device try parapet-blkback
    not_ready "no $device" "/dev/xen/$device .*modprobe xen-$device"
done

printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >/etc/passwd
try parapet-blkback su -s /bin/sh nobody -c
not_ready "no rights" "permission.*root"

mount -t tmpfs none /proc/xen
without xenbus try parapet-blkback env XENSTORED_PATH=/nowhere
umount /proc/xen
not_ready "no xenstored" "no xenstore.*/nowhere.*xenstored running"

: >/run/case/file
try parapet-blkback sh -c '"$0" --run-dir /run/case/file/folder'
not_ready "no folder to run in" "/run/case/file/folder.*--run-dir"

blkback
try parapet-blkback
not_ready "a second daemon" "runs already \\(process $(pid_of blkback)\\)"
check "the first one ends when asked to, with status 0" end_daemon blkback
refuse "status without a daemon" parapet-blkback status
