"""`p2p-dml bench`: what rounds cost without training, and what the machine could do at best."""
