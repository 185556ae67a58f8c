# Under a running PV guest with its disk, Xen's xenstored hands over to ours, and takes over again.
# limit: 400
ours=$(command -v parapet-xenstored)
xens=$(command -v xenstored)
to_ours() { check "ours takes over" xenstore-control live-update -c "--log debug" "$ours"; }
to_xens() { check "Xen's takes over" xenstore-control live-update -c "--no-fork" "$xens"; }
# The one that this machine has is there again in the end.
there=to_ours back=to_xens
! pidof parapet-xenstored || there=to_xens back=to_ours
blkback
known_disk root 8
known_disk more 8
guest pv-taken pv "disk = ['$(line xvda rw /disks/root block-parapet)']"
domid=$(xl domid pv-taken)
nodes=$(xenstore-ls -fp)
for over in "$there" "$back"; do
    $over
    expect "all nodes, after $over" "$(xenstore-ls -fp)" = "$nodes"
    check "xl lists the guest" sh -c "xl list | grep -q '^pv-taken *$domid '"
    attach pv-taken xvdb rw /disks/more
    detach pv-taken xvdb
    nodes=$(xenstore-ls -fp)
done
io_under_way pv-taken xvda
guest_off pv-taken
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
