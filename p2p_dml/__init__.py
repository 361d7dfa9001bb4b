"""p2p_dml: peer-to-peer training on real processes, over links that come and go."""

__version__ = "0.1.0"
