# A stock PV guest with a plain vif= line: ping, MTU 9000, TCP both ways on two queues, a killed daemon, a vif attached and detached, a bridge that is not there; it leaves nothing.
# limit: 400
uses_its_vif pv
sum=$(known_file 48)
killed_under_traffic net-pv "$sum" --queues 2
talks net-pv "$sum" 10.0.0.10

quietly "xl attaches a vif that our backend sees to" xl network-attach net-pv "mac=$(mac 0b)" bridge=xenbr0 script=vif-parapet
plugged_in net-pv eth1 10.0.0.11
pings net-pv "-I eth1 10.0.0.1"
expect "interfaces in domain 0" "$(interfaces)" = 2
quietly "xl detaches it" timeout -s KILL 60 xl network-detach net-pv 1
check "the guest has it no more" in_guest net-pv "! [ -e /sys/class/net/eth1 ]"
expect "interfaces in domain 0" "$(interfaces)" = 1

refuse "a bridge that is not there is an error" xl network-attach net-pv "mac=$(mac 0c)" bridge=nowhere script=vif-parapet
destroy net-pv
expect "what is left" "$(leftovers) interfaces=$(interfaces)" = "$before"
