# A block device of domain 0 is served as a file is, attached to a running guest and detached again.
modprobe loop
known_disk device 8
loop=$(losetup -f)
losetup "$loop" /disks/device
shared_guest pv
before=$(leftovers)
blkback
attach pv xvda rw "$loop"
reads_and_writes pv xvda "$loop"
detach pv xvda
expect "what is left" "$(leftovers)" = "$before"
check "the device is free" losetup -d "$loop"
