# The seam on /dev/xen/* keeps the promises that the loopback world keeps: grants, copies, events, deaths.
check "every check of the list passes" seam-conformance
