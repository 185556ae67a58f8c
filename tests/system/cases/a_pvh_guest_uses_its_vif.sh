# A stock PVH guest and a PV one with plain vif= lines: ping, MTU 9000, TCP both ways with domain 0 and with each other; both go, and leave nothing.
# machine: pvh
# limit: 400
uses_its_vif pvh
guest peer pv "vif = ['mac=$(mac 0d), bridge=xenbr0, rate=100Mb/s']"
plugged_in peer eth0 10.0.0.13
pings peer 10.0.0.10
sum=$(serve_in peer 4)
expect "what one is sent by the other" "$(in_guest net-pvh "$(fetch http://10.0.0.13/file)")" = "$sum"
sum=$(in_guest net-pvh "md5sum </tmp/www/file")
expect "and the other by the one" "$(in_guest peer "$(fetch http://10.0.0.10/file)")" = "$sum"
guest_off net-pvh
destroy peer
expect "what is left" "$(leftovers) interfaces=$(interfaces)" = "$before"
