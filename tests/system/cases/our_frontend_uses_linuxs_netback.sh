# Our frontend, in user space of a stock PV guest, fetches and sends a file over TCP by a vif that Linux's own netback serves.
before=$(leftovers)
guest front-net pv

# The guest gets the program as a disk.
cp "$(command -v net-exercise)" /disks/program
bytes=$(wc -c </disks/program)
truncate -s $(((bytes + 511) / 512 * 512)) /disks/program
blkback
attach front-net xvda r /disks/program
check "the guest takes the program" in_guest front-net "
    dd if=/dev/xvda bs=64k of=/tmp/net-exercise && chmod +x /tmp/net-exercise"
detach front-net xvda
end_daemon blkback || :
check "the guest's kernel does without its own frontend" in_guest front-net "
    rmmod xen-netfront && modprobe -a xen-evtchn xen-gntdev && modprobe xen-gntalloc limit=65536"

check "Linux's netback is there" modprobe -a xen-netback bridge
bridge xenbr0 10.0.0.1
quietly "xl attaches a vif" xl network-attach front-net "mac=$(mac 0e)" bridge=xenbr0
known_file 4
nc -l -p 7000 >/run/case/taken &
taker=$!
check "our frontend fetches and sends" in_guest front-net "
    /tmp/net-exercise 0 10.0.0.14 10.0.0.1 /file 7000 >/tmp/said 2>&1 || { cat /tmp/said; false; }" 150
in_guest front-net "cat /tmp/said"
wait $taker
sum=$(sha256sum </run/case/www/file | cut -d' ' -f1)
check "it fetched what there is" in_guest front-net "grep -qx 'fetched 4194304 $sum' /tmp/said"
check "no checksum was wrong" in_guest front-net "grep -qx 'corrupt 0' /tmp/said"
expect "what it sent" "$(sha256sum </run/case/taken | cut -d' ' -f1)" = "$sum"
quietly "xl detaches it" timeout -s KILL 60 xl network-detach front-net 0
destroy front-net
check "Linux's netback lets go" rmmod xen-netback
expect "what is left" "$(leftovers)" = "$before"
