# A stock PV guest boots and runs commands, whose output and status come back.
shared_guest pv
expect "the guest's kind" "$(in_guest pv 'cat /sys/hypervisor/guest_type')" = PV
expect "output of several lines" "$(in_guest pv 'seq 3; echo "a  b"')" = "$(printf '1\n2\n3\na  b')"
refuse "a command that fails, fails" in_guest pv 'exit 3'
check "the tools for cases with disks are there" in_guest pv 'e2fsck -V && which mke2fs'
