"""Peers in containers: of this machine, by docker's compose, or of several hosts, over ssh."""
