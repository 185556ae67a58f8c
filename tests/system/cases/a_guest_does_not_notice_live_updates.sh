# A PV guest, its disks and xl go on through live updates of our xenstored, and so does a waiting xl.
# machine: ours
# limit: 400
update() { check "$1" xenstore-control live-update "$(command -v parapet-xenstored)"; }
blkback
known_disk root 8
known_disk more 8
guest pv-live pv "disk = ['$(line xvda rw /disks/root block-parapet)']"
domid=$(xl domid pv-live)
process=$(pidof parapet-xenstored)
update "a first update"
update "and another"
expect "its process" "$(pidof parapet-xenstored)" = "$process"
check "xl lists the guest" sh -c "xl list | grep -q '^pv-live *$domid '"
expect "the guest's permissions" "$(xenstore-ls -fp "/local/domain/$domid" | sed -n 's/^.*data = .*(\(.*\))$/\1/p' | head -n 1)" = "n$domid"
attach pv-live xvdb rw /disks/more
update "an update with a disk attached"
reads_and_writes pv-live xvdb /disks/more
io_under_way pv-live xvda
detach pv-live xvdb
# What xl waits for comes by watches that were made before the update, and by Xen's word after it.
timeout -s KILL 150 xl shutdown -w pv-live >/run/case/shutdown 2>&1 &
waiting=$!
update "an update while xl waits for the guest to end"
check "xl shuts the guest down" wait "$waiting"
wait_for 30 "the guest is gone" gone pv-live
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
expect "nodes that are left" "$(xenstore-ls -f | grep -E "/${domid}[ /]|^/vm/")" = ""
