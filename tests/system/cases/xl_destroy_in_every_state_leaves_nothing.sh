# A guest destroyed while disks of it connect, work, close and are closed leaves nothing, and neither do five in a row.
blkback
for disk in a b c d; do disk $disk 4; done
printf '#!/bin/sh\n' >/etc/xen/scripts/block-holds
chmod 755 /etc/xen/scripts/block-holds

# Paused guests: their backends wait (2) for frontends, of which we write how far they are.
for state in 1 3 5 6 3; do
    paused_guest dies "$(line xvda rw /disks/a)" "$(line xvdb r /disks/b block-parapet)"
    domid=$(xl domid dies)
    if [ $state != 1 ]; then
        xenstore-write "$(node dies front xvda)/ring-ref" 20
        xenstore-write "$(node dies front xvda)/event-channel" 9
        xenstore-write "$(node dies front xvda)/state" $state
    fi
    destroy dies
    expect "what a guest in state $state leaves" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
done

# A running one, with disks in four states.
shared_guest pv
domid=$(xl domid pv)
attach pv xvda rw /disks/a
attach pv xvdb rw /disks/b
attach pv xvdc rw /disks/c
# Its script never says that it may connect, so its frontend has granted its ring to no avail.
quietly "xl attaches xvdd" xl block-attach pv "$(line xvdd rw /disks/d block-holds)"
wait_for 20 "the frontend of xvdd has answered" state_is pv front xvdd 3
io_under_way pv xvda
# Held, or its kernel would answer what we write in its name.
quietly "xl pauses it" xl pause pv
xenstore-write "$(node pv front xvdb)/state" 5
wait_for 20 "xvdb is closing" state_is pv back xvdb 5
xenstore-write "$(node pv front xvdc)/state" 6
wait_for 20 "xvdc is closed" state_is pv back xvdc 6
expect "grants mapped in the middle of I/O" "$(grants_mapped "$domid")" -gt 3
destroy pv
expect "what is left" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
check "our backend lives" parapet-blkback status
