# A stock PVH guest has queues, persistent grants, indirect segments, flush and discard, and sees its disk grow.
# machine: pvh
BLKBACK_OPTIONS='--queues 2'
blkback
known_disk features 8
VCPUS=2
guest all-pvh pvh "disk = ['$(line xvda rw /disks/features block-parapet)']"
domid=$(xl domid all-pvh)
uses_every_feature all-pvh xvda /disks/features

truncate -s 12M /disks/features
wait_for 30 "the guest sees that its disk has grown" has_sectors all-pvh xvda 24576
reads_and_writes all-pvh xvda /disks/features

destroy all-pvh
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
