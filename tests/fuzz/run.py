"""Coverage-guided fuzzing of all that reads foreign bytes, by atheris.

python -m tests.fuzz.run [--runs N] [--seconds S] [--jobs J] [TARGET …]

N runs of each target (all, if none is named), each in a process of its own, J at a time, beginning
with the committed corpus; `--seconds` ends a target earlier. What escapes is left in fuzz-findings/
as the bytes that did it. Without atheris (`pip install "p2p_dml[fuzz]"`) it says so and does
nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, NoReturn

CORPUS = Path(__file__).parent / "corpus"
FINDINGS = Path("fuzz-findings")
LONGEST = 4096
HANGS_S = 20

Targets = Mapping[str, Callable[[bytes], None]]


def main() -> int:
    """Fuzz each target; returns how many failed."""
    if importlib.util.find_spec("atheris") is None:
        print('atheris is not installed, nothing is fuzzed: pip install "p2p_dml[fuzz]"')
        return 0
    parser = argparse.ArgumentParser(description="fuzz what reads foreign bytes")
    parser.add_argument("--runs", type=int, default=20_000, help="of each target")
    parser.add_argument("--seconds", type=int, default=0, help="at most, of each target; 0: any")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    names = arguments.targets or sorted(folder.name for folder in CORPUS.iterdir())
    FINDINGS.mkdir(exist_ok=True)
    limits = [f"-runs={arguments.runs}", f"-max_total_time={arguments.seconds}"]
    failed = [name for name in fuzzed(names, limits, arguments.jobs) if name]
    print(f"{len(names)} targets, failed: {', '.join(failed) or 'none'}")
    return len(failed)


def fuzzed(names: Sequence[str], limits: Sequence[str], jobs: int) -> Iterator[str]:
    """Fuzz the targets, and say what came of each; the name of each that failed, else nothing.

    Imports are instrumented once, here: the processes of all targets are forked.
    """
    atheris, targets = _instrumented()
    running: dict[int, tuple[str, IO[bytes]]] = {}
    for name in (*names, *[None] * jobs):
        if len(running) == jobs or (name is None and running):
            pid, status = os.wait()
            yield _told(*running.pop(pid), has_failed=status != 0)
        if name is not None:
            log = tempfile.TemporaryFile()  # noqa: SIM115  (it is closed when it has been read)
            pid = os.fork()
            if pid == 0:
                _fuzz(atheris, targets, name, limits, log)
            running[pid] = name, log


def _instrumented() -> tuple[ModuleType, Targets]:
    """Atheris, and the targets as it sees them."""
    atheris = importlib.import_module("atheris")
    import torch

    torch.set_num_threads(1)  # or there would be threads, which do not survive a fork
    with atheris.instrument_imports(include=["p2p_dml"]):
        from tests.fuzz.targets import TARGETS
    return atheris, TARGETS


def _fuzz(
    atheris: ModuleType, targets: Targets, name: str, limits: Sequence[str], log: IO[bytes]
) -> NoReturn:
    """Fuzz a target in this process, which ends with it."""
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    grown = tempfile.mkdtemp(prefix="corpus-")
    options = [*limits, f"-timeout={HANGS_S}", f"-max_len={LONGEST}"]
    options += [f"-artifact_prefix={FINDINGS}/{name}-"]
    atheris.Setup([sys.argv[0], *options, grown, str(CORPUS / name)], targets[name])
    atheris.Fuzz()
    os._exit(0)


def _told(name: str, log: IO[bytes], *, has_failed: bool) -> str:
    with log:
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if "cov:" in line), "no coverage")
    print(f"{name}: {last.strip()}", flush=True)
    if has_failed:
        print(*lines[-60:], sep="\n", flush=True)
    return name if has_failed else ""


if __name__ == "__main__":
    sys.exit(main())
