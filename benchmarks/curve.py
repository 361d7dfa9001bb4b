"""What encryption costs: two peers send each other 44 MB, in the clear and by CURVE.

python -m benchmarks.curve [--megabytes 44] [--rounds 20]

One JSON line per case: over loopback, and between two network namespaces (as root), also with a
link of 1 Gbit/s; with one and two threads of libzmq, and with blocks in one frame. Megabytes per
second and processor seconds are medians over rounds, both directions together; ratios compare with
the case in the clear.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.curve_peer import IN_THE_CLEAR, WARM_UP
from p2p_dml import keys


def main(
    megabytes: Annotated[int, typer.Option(min=1)] = 44,
    rounds: Annotated[int, typer.Option(min=WARM_UP + 3)] = 20,
) -> None:
    """Measure all cases, those in the clear and by CURVE next to each other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "keys")
        keys.create(folder, 2)
        _measure("loopback", ["127.0.0.1"] * 2, [[], []], folder, megabytes, rounds)
        if os.geteuid() or not shutil.which("ip"):
            print(json.dumps({"over": "namespaces", "skipped": "needs root and the program ip"}))
            return
        for rate in ("", "1gbit"):
            with namespaces(rate) as (prefixes, hosts):
                _measure(f"veth {rate}".strip(), hosts, prefixes, folder, megabytes, rounds)


def _measure(
    over: str,
    hosts: Sequence[str],
    prefixes: Sequence[Sequence[str]],
    folder: Path,
    megabytes: int,
    rounds: int,
) -> None:
    for threads, frames in ((1, "short"), (2, "short"), (1, "whole")):
        clear: dict[str, float] = {}
        for keys_at in (IN_THE_CLEAR, str(folder)):
            words = [str(each) for each in (megabytes, rounds, threads, frames)]
            found = _exchange(hosts, prefixes, [*words, keys_at])
            case = {
                "over": over,
                "io_threads": threads,
                "frames": frames,
                "curve": keys_at != IN_THE_CLEAR,
            }
            clear = clear or found
            ratios = {
                f"{name}_over_clear": round(found[name] / clear[name], 2)
                for name in ("mb_per_s", "cpu_s")
            }
            print(json.dumps(case | found | (ratios if case["curve"] else {})), flush=True)


def _exchange(
    hosts: Sequence[str], prefixes: Sequence[Sequence[str]], words: Sequence[str]
) -> dict[str, float]:
    """Run both peers; what they measured, together."""
    peers = [
        subprocess.Popen(
            [*prefix, sys.executable, "-m", "benchmarks.curve_peer", str(me), host, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me, (host, prefix) in enumerate(zip(hosts, prefixes, strict=True))
    ]
    book = json.dumps(dict(enumerate(_line(peer) for peer in peers)))
    for each in peers:
        assert each.stdin is not None
        each.stdin.write(book + "\n")
        each.stdin.flush()
    found = [json.loads(_line(peer)) for peer in peers]
    for each in peers:
        each.communicate()
    seconds = statistics.mean(each["round_s"] for each in found)
    return {
        "round_ms": round(1e3 * seconds, 1),
        "mb_per_s": round(2 * int(words[0]) / seconds, 1),
        "cpu_s": round(sum(each["cpu_s"] for each in found), 3),
    }


def _line(peer: subprocess.Popen[str]) -> str:
    assert peer.stdout is not None
    return peer.stdout.readline().strip()


@contextmanager
def namespaces(rate: str) -> Iterator[tuple[list[list[str]], list[str]]]:
    """Two hosts with a cable between them: words to run a command on each, and their addresses."""
    mark = secrets.token_hex(3)
    names, ends, hosts = [f"p2p-{mark}-{i}" for i in (0, 1)], [f"v{mark}{i}" for i in (0, 1)], []
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip(
            "link",
            "add",
            ends[0],
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            ends[1],
            "netns",
            names[1],
        )
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            hosts.append(f"10.251.17.{i + 1}")
            _ip("-n", name, "address", "add", f"{hosts[i]}/24", "dev", end)
            for device in ("lo", end):
                _ip("-n", name, "link", "set", device, "up")
            if rate:
                shape = ["rate", rate, "burst", "256kb", "latency", "50ms"]
                subprocess.run(
                    ["tc", "-n", name, "qdisc", "add", "dev", end, "root", "tbf", *shape],
                    check=True,
                )
        yield [["ip", "netns", "exec", name] for name in names], hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


if __name__ == "__main__":
    typer.run(main)
