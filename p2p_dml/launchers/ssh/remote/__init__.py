"""What runs on a host before anything is installed there: the standard library and nothing else.

`p2p_dml.launchers.ssh.login` sends the sources of this folder through ssh to a host's Python.
"""
