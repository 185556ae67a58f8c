# On our xenstored xl creates a PV guest, lists it, attaches and detaches a disk, and shuts it down.
# machine: ours
blkback
known_disk root 8
known_disk more 8
guest pv-ours pv "disk = ['$(line xvda rw /disks/root block-parapet)']"
domid=$(xl domid pv-ours)
check "xl lists it" sh -c "xl list | grep -q '^pv-ours *$domid '"
attach pv-ours xvdb rw /disks/more
reads_and_writes pv-ours xvdb /disks/more
detach pv-ours xvdb
io_under_way pv-ours xvda
guest_off pv-ours
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
expect "nodes that are left" "$(xenstore-ls -f | grep -E "/$domid[ /]|^/vm/")" = ""
