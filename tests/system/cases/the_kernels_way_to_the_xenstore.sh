# Without xenstored's socket, as in a driver domain, our backend takes the kernel's connection, and serves.
# machine: pvh
blkback XENSTORED_PATH=/nowhere
check "it has the kernel's connection open" sh -c "ls -l /proc/$(pid_of blkback)/fd | grep /dev/xen/xenbus"
known_disk way 4
shared_guest pvh
attach pvh xvda rw /disks/way
reads_and_writes pvh xvda /disks/way
detach pvh xvda
