# Our frontend, in user space of a stock PV guest, writes and verifies a disk that Linux's own blkback serves.
before=$(leftovers)
guest front-pv pv
domid=$(xl domid front-pv)

# The guest gets the program as a disk, by its own kernel's frontend, which goes then.
cp "$(command -v disk-exercise)" /disks/program
bytes=$(wc -c </disks/program)
truncate -s $(((bytes + 511) / 512 * 512)) /disks/program
blkback
attach front-pv xvda r /disks/program
check "the guest takes the program" in_guest front-pv "
    dd if=/dev/xvda bs=64k of=/tmp/disk-exercise && chmod +x /tmp/disk-exercise"
detach front-pv xvda
end_daemon blkback || :
check "the guest's kernel does without its own frontend" in_guest front-pv "
    rmmod xen-blkfront && modprobe -a xen-evtchn xen-gntdev && modprobe xen-gntalloc limit=65536"

modprobe -a loop xen-blkback
disk served 8
losetup /dev/loop7 /disks/served
# What Linux's blkback waits for: which block device it is.
cat >/etc/xen/scripts/block-linux <<'END'
#!/bin/sh
[ "$1" = add ] || exit 0
device=$(xenstore-read "$XENBUS_PATH/params")
xenstore-write "$XENBUS_PATH/physical-device" "$(stat -c %t:%T "$device")"
xenstore-write "$XENBUS_PATH/hotplug-status" connected
END
chmod 755 /etc/xen/scripts/block-linux
quietly "xl attaches xvdb" xl block-attach front-pv "$(line xvdb rw /dev/loop7 block-linux)"
check "our frontend writes and verifies" in_guest front-pv "/tmp/disk-exercise $(vbd xvdb) >/tmp/said 2>&1" 200
in_guest front-pv "cat /tmp/said"
said=$(in_guest front-pv "cat /tmp/said")
for words in "sectors 16384" "flush true" "persistent true" "verified 8388608"; do
    check "it says: $words" sh -c "echo '$said' | grep -qx '$words'"
done
expect "zero bytes among what Linux was given to write" "$(tr -dc '\0' <"/disks/served" | wc -c)" -lt 200000
quietly "xl detaches xvdb" timeout -s KILL 60 xl block-detach front-pv xvdb
destroy front-pv
check "the device is free" losetup -d /dev/loop7
check "Linux's blkback lets go" rmmod xen-blkback
expect "what is left" "$(leftovers)" = "$before"
