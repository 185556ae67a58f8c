# A stock PVH guest under verified I/O does not notice that parapet-blkback is killed and started again, and again.
# machine: pvh
# limit: 600
survives_kills crash-pvh pvh 6
