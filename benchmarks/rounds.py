"""Rounds without training against bare loops over the same links. One table, and a line per case.

python -m benchmarks.rounds [--repeat 5] [--rounds 100] [--out rounds.jsonl]

Each case runs over loopback TCP and over shared memory, `repeat` times; before each run the bare
loops of docs/benchmarks.md are measured, so that both see the same machine. Share of the limit: of
bare pyzmq over TCP, of the bare loop in shared memory, by medians. Copy rate: what one of two peers
sends per second, of what one core copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from p2p_dml.console import sayer
from p2p_dml.launchers.bench import rounds as measuring
from p2p_dml.launchers.bench.cases import Case

TCP, SHARED = "scheme=tcp shared_memory=false", "shared_memory=true"

CASES: list[tuple[int, str, int, float]] = [
    (8, "ring", 10**6, 1.0),
    (8, "k_regular degree=4", 10**6, 1.0),
    (8, "complete", 11 * 10**6, 0.3),
    (2, "ring", 11 * 10**6, 0.5),
]
"""peers, topology, parameters, and the share of `--rounds` that is enough."""


def main(
    repeat: Annotated[int, typer.Option(min=1)] = 5,
    rounds: Annotated[int, typer.Option(min=10)] = 100,
    out: Annotated[Path | None, typer.Option()] = None,
) -> None:
    cases = [
        Case(
            peers=peers,
            topology=topology,
            params=params,
            rounds=max(10, int(share * rounds)),
            transport=transport,
        )
        for peers, topology, params, share in CASES
        for transport in (TCP, SHARED)
    ]
    measuring.check(cases)
    table = Table("case", "over", "ms per round", "10 – 90 %", "bare", "ratio", "of copy rate")
    say = sayer(Console(stderr=True), False)
    for line in measuring.measure(cases, repeat, with_limits=True, say=say):
        text = measuring.as_text(line)
        if out is not None:
            measuring.append(out, text)
        print(text, flush=True)
        table.add_row(*row_of(line))
    Console().print(table)


def row_of(line: dict[str, Any]) -> list[str]:
    """One case for the table."""
    kind = "pyzmq" if line["transport"] == TCP else "shared"
    rate_gb_s = line["bytes_out"] / line["round_ms"] / 1e6
    return [
        f"{line['peers']} peers, {line['topology']}, {line['params'] / 1e6:g} M",
        "TCP" if kind == "pyzmq" else "shared memory",
        f"{line['round_ms']:.3g}",
        f"{line['round_ms_p10']:.3g} – {line['round_ms_p90']:.3g}",
        f"{line['limits'][f'{kind}_ms']:.3g}",
        f"{line['ratio'][kind]:.2f}",
        f"{rate_gb_s / line['limits']['memory_copy_gb_s']:.0%}",
    ]


if __name__ == "__main__":
    typer.run(main)
