# A stock PV guest with disks in its xl.cfg reads, writes, flushes, keeps an ext4, and goes by xl shutdown in mid-I/O.
blkback
known_disk root 14
known_disk data 4
known_disk shared 2
guest disks-pv pv "disk = ['$(line xvda rw /disks/root block-parapet)', '$(line xvdb rw /disks/data)',
    '$(line xvdc ro /disks/shared block-parapet)']"
domid=$(xl domid disks-pv)

reads_and_writes disks-pv xvda /disks/root
refuses_writes disks-pv xvdc /disks/shared
both_at_once disks-pv xvda /disks/root xvdb /disks/data
for disk in xvda xvdb xvdc; do counts_agree disks-pv $disk; done
keeps_files disks-pv xvda /disks/root ext4

io_under_way disks-pv xvdb
expect "grants mapped in the middle of I/O" "$(grants_mapped "$domid")" -gt 3
guest_off disks-pv
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
