"""`python -m p2p_dml` is the command `p2p-dml`; started by torchrun it is one peer of a run."""

import os

from p2p_dml.cli import main, rank_main
from p2p_dml.launchers.ranks import ranks_of

if __name__ == "__main__":
    ranks = ranks_of(os.environ)
    if ranks is None:
        main()
    rank_main(ranks)
