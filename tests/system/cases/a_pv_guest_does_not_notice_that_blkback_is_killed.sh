# A stock PV guest under verified I/O does not notice that parapet-blkback is killed and started again, and again.
# limit: 600
survives_kills crash-pv pv 6
