# A stock PVH guest boots and runs commands, whose output and status come back.
# machine: pvh
shared_guest pvh
expect "the guest's kind" "$(in_guest pvh 'cat /sys/hypervisor/guest_type')" = PVH
expect "output of several lines" "$(in_guest pvh 'seq 3; echo "a  b"')" = "$(printf '1\n2\n3\na  b')"
