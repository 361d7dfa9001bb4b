"""Whether hosts can take part: what each says of itself, whom it reaches, and what to do if not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from p2p_dml.config import RunConfig
from p2p_dml.data.fetch import SETS
from p2p_dml.launchers.ssh.channel import Request, Switchboard, Talk
from p2p_dml.launchers.ssh.hosts import Cluster, Host
from p2p_dml.launchers.ssh.quarters import Quarters

MEASURED_BYTES = 8_000_000
"""What `p2p-dml doctor` sends over each pair of hosts."""

_CLOCK_S = 1.0
"""Clocks further apart are worth a word: times in the report are those of the hosts."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Which data are looked for on every host: files by their names, and the name of the set."""

    name: str | None = None
    files: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a host said, and how far its clock is ahead of ours, give or take `clock_error_s`.

    `unfit`: why peers cannot live there.
    """

    said: Mapping[str, Any]
    unfit: Sequence[str]
    python: str
    clock_s: float
    clock_error_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What one host measured of its way to another."""

    rtt_s: float | None
    bytes_per_s: float | None
    error: str | None


@final
@dataclass(slots=True, kw_only=True)
class Findings:
    """What was found out. A problem keeps a run from starting, a remark does not."""

    facts: dict[Host, Facts] = field(default_factory=dict)
    paths: dict[tuple[Host, Host], Path] = field(default_factory=dict)
    problems: list[tuple[Host, str]] = field(default_factory=list)
    remarks: list[tuple[Host, str]] = field(default_factory=list)

    @property
    def words(self) -> str:
        """All problems, a line each."""
        return "\n".join(f"{host.name}: {what}" for host, what in self.problems)


def need_of(config: RunConfig | None) -> Need:
    """What a run needs; without one, nothing."""
    name = None if config is None or "function" in config.train else str(config.data["name"])
    remote = SETS.get(name or "")
    if remote is None:
        return Need()
    files = tuple(file.path.removesuffix(".gz") for file in remote.files)
    return Need(name=name, files=files)


def check(
    board: Switchboard, cluster: Cluster, need: Need, quarters: Quarters, num_bytes: int
) -> Findings:
    """Ask all hosts at once what they have, then let each call every other.

    `num_bytes` travel over every pair, or none if 0.
    """
    found = Findings()
    looks = {host: _look(host, need, quarters, board) for host in cluster.hosts}
    facts, failures = board.converse(looks)
    found.facts = facts
    found.problems += failures.items()
    for host, each in facts.items():
        _judge(host, each, need, found)
    _compare_data(facts, need, found)
    if not any(each.said["taken"] for each in facts.values()):
        _call_each_other(board, list(facts), num_bytes, found)
    found.problems.sort(key=lambda problem: problem[0].index)
    return found


def _look(host: Host, need: Need, quarters: Quarters, board: Switchboard) -> Talk[Facts]:
    entry = host.entry
    head = {
        "ask": "look",
        "folder": entry.folder,
        "ports": list(host.ports),
        "files": list(need.files),
        "data": entry.data,
    }
    yield Request(head={"ask": "time"})  # from here on no time goes into logging in
    before, said = time.time(), (yield Request(head={"ask": "time"}))
    error = (time.time() - before) / 2
    ahead = said["time"] - (before + error)
    said = yield Request(head=head)
    fitness = yield from quarters.examine(host, said)
    return Facts(
        said={**said, **fitness.said},
        unfit=fitness.problems,
        python=board.connections[host].python or "",
        clock_s=ahead,
        clock_error_s=error,
    )


def _judge(host: Host, facts: Facts, need: Need, found: Findings) -> None:
    """Add what is wrong with one host, and how to mend it."""
    said, problems = facts.said, list(facts.unfit)
    if said["obstacle"]:
        problems.append(
            f"folder {said['folder']}: {said['obstacle']}; set `folder` in the hosts file"
        )
    if said["taken"]:
        ports = ", ".join(map(str, said["taken"]))
        problems.append(
            f"another program listens on port {ports}; stop it, or set `base_port` in the hosts "
            "file"
        )
    if said["data"] and said["data"]["missing"]:
        problems.append(_missing_data(said["data"], need))
    found.problems += [(host, problem) for problem in problems]
    if abs(facts.clock_s) - facts.clock_error_s > _CLOCK_S:
        found.remarks.append(
            (host, f"its clock is {facts.clock_s:+.1f} s off; times in the report will be, too")
        )


def _missing_data(data: Mapping[str, Any], need: Need) -> str:
    where = f"in {data['place']}" if data["place"] else "anywhere ($P2P_DML_DATA is not set there)"
    return (
        f"data set {need.name!r} is not {where}: {', '.join(data['missing'][:3])} missing; copy it "
        "there, and say where with `data` in the hosts file"
    )


def _compare_data(facts: Mapping[Host, Facts], need: Need, found: Findings) -> None:
    """Those whose data differ from what most have are wrong."""
    digests = {host: each.said["data"]["digest"] for host, each in facts.items() if need.files}
    counts = Counter(each for each in digests.values() if each)
    usual = counts.most_common(1)[0][0] if counts else None
    for host, digest in digests.items():
        if digest and digest != usual:
            place = facts[host].said["data"]["place"]
            what = f"data set {need.name!r} in {place} differs from that of other hosts"
            found.problems.append((host, f"{what}; copy it there again"))


def _call_each_other(
    board: Switchboard, hosts: Sequence[Host], num_bytes: int, found: Findings
) -> None:
    """In each turn every host calls one other, and is called by one."""
    listening, failures = board.converse({host: _listen(host) for host in hosts})
    found.problems += failures.items()
    hosts = [host for host in hosts if host in listening]
    for turn in range(1, len(hosts)):
        pairs = {host: hosts[(i + turn) % len(hosts)] for i, host in enumerate(hosts)}
        calls = {host: _call(other, num_bytes) for host, other in pairs.items()}
        paths, failures = board.converse(calls)
        found.problems += failures.items()
        found.paths |= {(host, pairs[host]): path for host, path in paths.items()}
    _judge_paths(hosts, found)
    _, failures = board.converse({host: _hush() for host in hosts})
    found.problems += failures.items()


def _judge_paths(hosts: Sequence[Host], found: Findings) -> None:
    """Add whom others do not reach."""
    for host in hosts:
        errors = {
            source: path.error
            for (source, target), path in found.paths.items()
            if target is host and path.error is not None
        }
        if not errors:
            continue
        is_any = len(errors) == len(hosts) - 1
        who = "any other host" if is_any else ", ".join(source.name for source in errors)
        why = ", ".join(sorted(set(errors.values())))
        found.problems.append(
            (
                host,
                f"cannot be reached from {who} at {host.address}:{host.ports[0]} ({why}); let TCP "
                f"ports {host.ports[0]} to {host.ports[-1]} in, or set its `address`",
            )
        )


def _listen(host: Host) -> Talk[bool]:
    yield Request(head={"ask": "listen", "ports": [host.ports[0]]})
    return True


def _hush() -> Talk[bool]:
    yield Request(head={"ask": "hush"})
    return True


def _call(other: Host, num_bytes: int) -> Talk[Path]:
    head = {"ask": "measure", "address": other.address, "port": other.ports[0], "bytes": num_bytes}
    said = yield Request(head=head)
    return Path(
        rtt_s=said.get("rtt_s"), bytes_per_s=said.get("bytes_per_s"), error=said.get("error")
    )
