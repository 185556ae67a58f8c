# A stock PVH guest and a PV one with plain vif= lines: ping, MTU 9000, TCP both ways with domain 0 and with each other, over a bridge and over a switch of the daemon; both go, and leave nothing.
# machine: pvh
# limit: 400
uses_its_vif pvh --network lan=isolated
guest peer pv "vif = ['mac=$(mac 0d), bridge=xenbr0, rate=100Mb/s']"
plugged_in peer eth0 10.0.0.13
pings peer 10.0.0.10
sum=$(serve_in peer 4)
expect "what one is sent by the other" "$(in_guest net-pvh "$(fetch http://10.0.0.13/file)")" = "$sum"
sum=$(in_guest net-pvh "md5sum </tmp/www/file")
expect "and the other by the one" "$(in_guest peer "$(fetch http://10.0.0.10/file)")" = "$sum"

# The two of them, on a switch of the daemon's own.
for guest in net-pvh peer; do
    quietly "xl attaches a vif to the daemon's network" xl network-attach $guest "mac=$(mac 1${#guest})" bridge=lan script=vif-parapet
    plugged_in $guest eth1 10.1.0.${#guest}
done
pings peer 10.1.0.7 1400
expect "and over the switch" "$(in_guest peer "$(fetch http://10.1.0.7/file)")" = "$sum"
expect "interfaces in domain 0" "$(interfaces)" = 2
guest_off net-pvh
destroy peer
expect "what is left" "$(leftovers) interfaces=$(interfaces)" = "$before"
