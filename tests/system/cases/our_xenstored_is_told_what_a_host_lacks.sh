# What our xenstored lacks on a host, or that there is another one, it says in one line with exit status 2.
for device in gntdev evtchn privcmd; do
    without $device try parapet-xenstored
    not_ready "no $device" "/dev/xen/$device .*modprobe xen-$device"
done
without hypercall try parapet-xenstored
not_ready "no hypercall" "/dev/xen/hypercall .*modprobe xen-privcmd"
without xenbus_backend try parapet-xenstored
not_ready "no domain 0" "not domain 0"

printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >/etc/passwd
try parapet-xenstored su -s /bin/sh nobody -c
not_ready "no rights" "permission.*root"

try parapet-xenstored
not_ready "Xen's own xenstored" "DomExc.*another xenstored"
check "that one is there still" xenstore-read /local/domain/0/domid
try parapet-xenstored sh -c '"$0" --no-domains --run-dir /run/case/run'
not_ready "its socket" "somebody listens at /run/xenstored/socket"
