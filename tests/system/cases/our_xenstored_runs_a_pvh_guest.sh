# On our xenstored xl creates a PVH guest, attaches a disk, and destroys it; and sees another crash.
# machine: ours
blkback
known_disk root 8
known_disk more 8
guest pvh-ours pvh "disk = ['$(line xvda rw /disks/root block-parapet)']"
domid=$(xl domid pvh-ours)
reads_and_writes pvh-ours xvda /disks/root
attach pvh-ours xvdb rw /disks/more
io_under_way pvh-ours xvdb
destroy pvh-ours
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
refuse "its nodes are there" xenstore-exists "/local/domain/$domid"

# Nobody but Xen tells of this one's end. A xl of its own waits for that, to destroy it.
guest crashing pvh
in_guest crashing "(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &"
wait_for 60 "xl has destroyed what crashed" gone crashing
refuse "the nodes of what crashed are there" xenstore-exists "/local/domain/$((domid + 1))"
