# What a guest was told is flushed is in the file when our backend is killed; the next one lets xl detach.
blkback
known_disk killed 4
shared_guest pv
attach pv xvda rw /disks/killed
check "write, and flush" in_guest pv "dd if=/dev/urandom of=/tmp/new bs=64k count=32 && dd if=/tmp/new of=/dev/xvda bs=64k conv=fsync,notrunc"
end_daemon blkback KILL || :
expect "what is in the file" "$(head -c 2097152 /disks/killed | md5sum)" = "$(sum_in pv /tmp/new)"
expect "grants that the killed process left" "$(grants_mapped)" = 0
blkback
detach pv xvda
