"""What `p2p-dml doctor` shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from p2p_dml.launchers.ssh.hosts import Cluster, Host
from p2p_dml.launchers.ssh.preflight import Facts, Findings, Need, Path

_ABSENT = "–"


def hosts_table(cluster: Cluster, need: Need, found: Findings) -> Table:
    """A row per host: what it has, and whether it may take part."""
    columns = ("Python", "p2p_dml", "clock", "taken ports", "disk", "GPUs")
    table = Table("host", "peers", "at", box=None, header_style="dim")
    for name in (*columns, *(["data"] if need.name else []), ""):
        table.add_column(name, no_wrap=True)
    bad = {host for host, _ in found.problems}
    for host in cluster.hosts:
        verdict = Text("mend", style="bold red") if host in bad else Text("fine", style="green")
        facts = found.facts.get(host)
        cells = _cells(facts, bool(need.name)) if facts else ()
        place = f"{host.address}:{_span(host.ports)}"
        row = [f"{host.index} {host.name}", _span(host.peers), place, *cells]
        row += [_ABSENT] * (len(table.columns) - 1 - len(row))
        table.add_row(*row, verdict)
    return table


def _cells(facts: Facts, with_data: bool) -> list[str]:
    said = facts.said
    has_data = bool(said["data"] and said["data"]["digest"])
    cells = [
        facts.python,
        _package(said),
        _clock(facts),
        ", ".join(map(str, said["taken"])) or "none",
        f"{said['disk_mb'] / 1000:.0f} GB",
        str(said["gpus"]),
    ]
    return [*cells, *(["there" if has_data else "missing"] if with_data else [])]


def _package(said: Mapping[str, Any]) -> str:
    """Whether this very package is there, or at least all that it needs."""
    if not said["has_env"]:
        return "not yet"
    return "this one" if said["has_package"] else "another"


def _clock(facts: Facts) -> str:
    """What is known of the offset; within the error of the measurement it is none."""
    is_known = abs(facts.clock_s) > facts.clock_error_s
    return f"{facts.clock_s:+.2f} s" if is_known and abs(facts.clock_s) >= 0.01 else "same"


def _span(numbers: range) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def latency_table(found: Findings) -> Table:
    """Round trips from the host of a row to that of a column, in ms."""
    return _matrix(found, "round trip, ms", lambda path: _number(path.rtt_s, 1e3))


def bandwidth_table(found: Findings) -> Table:
    """What the host of a row could send to that of a column, in MB/s (10^6 bytes)."""
    return _matrix(found, "throughput, MB/s", lambda path: _number(path.bytes_per_s, 1e-6))


def _matrix(found: Findings, title: str, show: Callable[[Path], str]) -> Table:
    hosts = _measured(found)
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    table.add_column("from \\ to")
    for host in hosts:
        table.add_column(str(host.index), justify="right")
    for source in hosts:
        paths = [found.paths.get((source, target)) for target in hosts]
        table.add_row(
            f"{source.index} {source.name}", *(show(path) if path else "" for path in paths)
        )
    return table


def _measured(found: Findings) -> Sequence[Host]:
    return sorted({host for pair in found.paths for host in pair}, key=lambda host: host.index)


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return _ABSENT
    return f"{value * scale:.0f}" if value * scale >= 10 else f"{value * scale:.2g}"
