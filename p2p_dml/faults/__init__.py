"""Faults as data: `[[faults]]` of a run file, dealt to the peers and done to them.

`process` does to a peer's own process what is planned for it, `simulated` to a peer of the
simulator. Who is drawn follows from the seed, so every process finds the same peers.
"""

from p2p_dml.faults._plan import Agenda, Chosen, Fault, plan

__all__ = ["Agenda", "Chosen", "Fault", "plan"]
