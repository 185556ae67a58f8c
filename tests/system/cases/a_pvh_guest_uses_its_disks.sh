# A stock PVH guest with disks in its xl.cfg reads, writes, flushes, keeps an ext2, and goes by xl destroy in mid-I/O.
# machine: pvh
blkback
known_disk root 14
known_disk data 4
known_disk shared 2
guest disks-pvh pvh "disk = ['$(line xvda rw /disks/root block-parapet)', '$(line xvdb rw /disks/data)',
    '$(line xvdc ro /disks/shared block-parapet)']"
domid=$(xl domid disks-pvh)

reads_and_writes disks-pvh xvda /disks/root
refuses_writes disks-pvh xvdc /disks/shared
both_at_once disks-pvh xvda /disks/root xvdb /disks/data
for disk in xvda xvdb xvdc; do counts_agree disks-pvh $disk; done
keeps_files disks-pvh xvda /disks/root ext2

io_under_way disks-pvh xvdb
expect "grants mapped in the middle of I/O" "$(grants_mapped "$domid")" -gt 3
destroy disks-pvh
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
