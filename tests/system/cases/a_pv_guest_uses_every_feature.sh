# A stock PV guest has queues, persistent grants, indirect segments, flush and discard, and sees its disk grow.
BLKBACK_OPTIONS='--queues 2'
blkback
known_disk features 8
VCPUS=2
guest all-pv pv "disk = ['$(line xvda rw /disks/features block-parapet)']"
domid=$(xl domid all-pv)
uses_every_feature all-pv xvda /disks/features

truncate -s 12M /disks/features
wait_for 30 "the guest sees that its disk has grown" has_sectors all-pv xvda 24576
reads_and_writes all-pv xvda /disks/features

destroy all-pv
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
