"""Where peers live on a host: in an environment of its Python, or in containers.

A launch checks hosts, copies, starts, follows and collects; what differs is behind `Quarters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from p2p_dml.launchers.ssh.channel import Switchboard, Talk
from p2p_dml.launchers.ssh.hosts import Host

Say = Callable[[str], None]


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """The place of one supervisor on a host, with its peers; two are the same if one object.

    `name`: of its folders there and of its log, another for every site of a run. `label`: what the
    supervisor is called in messages.
    """

    host: Host
    name: str
    peers: range
    label: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """Two folders of a launch on a host, each with one for every site: `home` is what is brought.

    `out` is what the peers make.
    """

    home: str
    out: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is started on a host, and speaks in JSON lines.

    `home` and `run`: where a supervisor finds its two folders, which are given to `owner` (user and
    group) if there is one. `undo`: what ends all that the program may leave running.
    """

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    undo: Sequence[str] = ()
    home: str = ""
    run: str = ""
    owner: tuple[int, int] | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """What a host has for peers to live in, what is wrong with that, and how to mend it."""

    said: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()


class Quarters(Protocol):
    """Where the peers of one launch live, on all of its hosts."""

    @property
    def command(self) -> str:
        """What the user has called."""
        ...

    def examine(self, host: Host, said: Mapping[str, Any]) -> Talk[Fitness]:
        """Whether peers could live there; `said`: what the host says of itself."""
        ...

    def prepare(self, board: Switchboard, grounds: Mapping[Host, Grounds], say: Say) -> None:
        """Bring what is missing; StartupError naming the hosts where that fails."""
        ...

    def sites(self, host: Host) -> Sequence[Site]:
        """Each peer of the host is at one of them. The same objects every time."""
        ...

    def program(self, site: Site, grounds: Grounds) -> Program:
        """The supervisor of a site."""
        ...

    def lookout(self, host: Host, grounds: Grounds) -> Program | None:
        """What is started before the supervisors of a host, to tell how they are from outside."""
        ...

    def hear(self, host: Host, said: Mapping[str, Any]) -> Iterable[tuple[Site, Mapping[str, Any]]]:
        """What a line of the lookout means for sites, as lines of their supervisors could say it.

        `fate`: what ended peers there that cannot say it themselves. `paused`: what they are to be
        ended for if they still are when all others have ended; None once they go on.
        """
        ...
