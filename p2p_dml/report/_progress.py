"""What the events say of each peer while a run goes on: a pure state machine, no clock, no files.

A peer's own events say how far it is; that it is slow, dead or has left can only be said by its
neighbours, and the newest report holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from p2p_dml.report._values import Line
from p2p_dml.types import PeerId

State = Literal["starting", "running", "slow", "stuck", "dead", "left", "done", "stopped", "failed"]
_GONE: frozenset[State] = frozenset({"dead", "left", "failed"})
_ENDED: frozenset[State] = _GONE | {"done", "stopped"}
_RATE_WINDOW = 11


@final
@dataclass(slots=True, kw_only=True)
class PeerProgress:
    """One peer so far; `rounds_done` counts rounds, `heard` of `expected` the last.

    `resumed_at`: the round after which it was taken up, in a resumed run.
    """

    peer: PeerId
    state: State = "starting"
    rounds_done: int = 0
    resumed_at: int = 0
    loss: float | None = None
    accuracy: float | None = None
    bytes_out: int = 0
    heard: int | None = None
    expected: int | None = None
    joined: float | None = None
    last_t: float = 0.0
    _round_times: deque[float] = field(default_factory=lambda: deque(maxlen=_RATE_WINDOW))
    _bytes_at: dict[int, int] = field(default_factory=lambda: {0: 0})  # at rounds with a checkpoint

    @property
    def is_running(self) -> bool:
        return self.state not in _ENDED

    @property
    def rate(self) -> float | None:
        """Rounds per second over the last ten rounds; None before the second round."""
        times = self._round_times
        if len(times) < 2 or times[-1] <= times[0]:
            return None
        return (len(times) - 1) / (times[-1] - times[0])

    def finish_round(self, line: Line) -> None:
        self.rounds_done = line["round"]
        self.loss = line["loss"]
        self.bytes_out += line["bytes_out"]
        self.expected = line["neighbours"]
        self.heard = line["neighbours"] - len(line["missing"])
        self._round_times.append(line["t"])

    def save(self, round: int) -> None:
        """Remember what had been sent when the checkpoint of a round was made."""
        self._bytes_at[round] = self.bytes_out

    def resume(self, round: int) -> None:
        """Go back to a round of which a checkpoint was made."""
        self.rounds_done = self.resumed_at = round
        self.bytes_out = self._bytes_at.get(round, self.bytes_out)
        self._round_times.clear()


@final
class Progress:
    """All peers of a run; fed with event lines in the order of each file.

    Of what was before `since`, of a run that is resumed then, nothing is said.
    """

    def __init__(self, num_peers: int, since: float = 0.0) -> None:
        self.peers = [PeerProgress(peer=peer) for peer in range(num_peers)]
        self._since = since
        self._said: set[str] = set()

    @property
    def remaining(self) -> list[PeerProgress]:
        """Peers still in the run or through with it; not the dead, failed, and departed."""
        return [peer for peer in self.peers if peer.state not in _GONE]

    def take(self, line: Line) -> str | None:
        """Take in one event; returns a sentence if it is the first of its kind worth saying."""
        sentence = self._take(line)
        return sentence if line["t"] >= self._since else None

    def _take(self, line: Line) -> str | None:
        peer = self.peers[line["peer"]]
        event = line["event"]
        if event == "neighbour_changed":
            return self._mark(self.peers[line["neighbour"]], line)
        if event == "started" and line["t"] >= self._since > peer.last_t:
            peer.state, peer.joined = "starting", None
        peer.last_t = max(peer.last_t, line["t"])
        if event == "started":
            return self._start(peer)
        if event == "finished":
            return self._finish(peer, line)
        if event == "rejected":
            sender = "unknown sender" if line["sender"] is None else f"peer {line['sender']}"
            return self._once(
                f"rejected a message of {sender}: {line['why']}", f"peer {peer.peer} "
            )
        if event == "joined":
            peer.joined, peer.state = line["t"], "running"
        elif event == "resumed":
            peer.resume(line["round"])
        elif event == "checkpointed":
            peer.save(line["round"])
        elif event == "round_done":
            peer.finish_round(line)
            if peer.state in ("starting", "dead", "left"):
                peer.state = "running"
        elif event == "evaluated" and line["accuracy"] is not None:
            peer.accuracy = line["accuracy"]
        return None

    def _start(self, peer: PeerProgress) -> str | None:
        came_back = peer.state != "starting"
        peer.state = "starting"
        return f"peer {peer.peer} came back" if came_back else None

    def _finish(self, peer: PeerProgress, line: Line) -> str | None:
        code = line["exit_code"]
        peer.state = "done" if code == 0 else "stopped" if code == 5 else "failed"
        if peer.state != "failed":
            return None
        return f"peer {peer.peer} failed in round {line['round']}: {line['error']} (exit {code})"

    def _mark(self, peer: PeerProgress, line: Line) -> str | None:
        """Note what a neighbour says of `peer`, unless the peer itself knows better."""
        if peer.state in ("done", "stopped", "failed"):
            return None
        before, state = peer.state, line["state"]
        if state == "alive":
            peer.state = "running" if peer.joined or peer.rounds_done else "starting"
        # A link can be dead while the peer is not: its own later events count for more.
        elif state in ("slow", "stuck") or peer.last_t <= line["t"]:
            peer.state = state
        if peer.state != "dead" or before == "dead":
            return None
        return f"peer {line['peer']} says that peer {peer.peer} is dead: {line['why']}"

    def _once(self, sentence: str, prefix: str = "") -> str | None:
        if sentence in self._said:
            return None
        self._said.add(sentence)
        return prefix + sentence


def most_interesting(peers: Sequence[PeerProgress], room: int) -> list[PeerProgress]:
    """The `room` peers one would look at first, ascending: failed, dead, slow, then the slowest."""
    urgency: dict[State, int] = {"failed": 0, "dead": 0, "stuck": 1, "slow": 1}
    urgency |= {"starting": 2, "running": 2}
    ranked = sorted(peers, key=lambda p: (urgency.get(p.state, 3), p.rounds_done, p.peer))
    return sorted(ranked[:room], key=lambda p: p.peer)
