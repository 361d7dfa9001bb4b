"""`python -m p2p_dml` is the command `p2p-dml`."""

from p2p_dml.cli import main

if __name__ == "__main__":
    main()
