# A PVH guest that is shut down while it reads and writes two disks leaves nothing, and the next guest is served.
# machine: pvh
blkback
known_disk a 4
known_disk b 4
shared_guest pvh
domid=$(xl domid pvh)
attach pvh xvda rw /disks/a
attach pvh xvdb rw /disks/b
io_under_way pvh xvdb
io_under_way pvh xvda
guest_off pvh
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
