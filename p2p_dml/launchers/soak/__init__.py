"""`p2p-dml soak`: a run of local processes under faults at random, watched all the time."""
