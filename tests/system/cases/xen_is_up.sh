# Domain 0 runs on Xen, and the stock tools work: xl, the xenstore, Xen's console.
expect "the hypervisor" "$(cat /sys/hypervisor/type)" = xen
expect "domain 0's name" "$(xl domname 0)" = Domain-0
check "xl knows Xen's version" xl info xen_version
check "Xen answers on its console" sh -c 'xl debug-keys h && xl dmesg | grep -q "installed"'

xenstore-write /tool/parapet/greeting hello
expect "what was written to the xenstore" "$(xenstore-read /tool/parapet/greeting)" = hello
xenstore-rm /tool/parapet
refuse "a removed node is gone" xenstore-exists /tool/parapet/greeting
