"""Commands of `p2p-dml` that have a file of their own; `p2p_dml.cli` puts them together."""
