"""Coverage-guided fuzzing of all that reads foreign bytes, by atheris.

python -m tests.fuzz.run [--runs N] [--seconds S] [TARGET …]

N runs of each target (all, if none is named), each in a process of its own, beginning with the
committed corpus; `--seconds` ends a target earlier. What escapes is left in fuzz-findings/ as the
bytes that did it. Without atheris (`pip install "p2p_dml[fuzz]"`) it says so and does nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
FINDINGS = Path("fuzz-findings")
LONGEST = 4096
HANGS_S = 20


def main() -> int:
    """Fuzz each target; returns how many failed."""
    if importlib.util.find_spec("atheris") is None:
        print('atheris is not installed, nothing is fuzzed: pip install "p2p_dml[fuzz]"')
        return 0
    parser = argparse.ArgumentParser(description="fuzz what reads foreign bytes")
    parser.add_argument("--runs", type=int, default=20_000, help="of each target")
    parser.add_argument("--seconds", type=int, default=0, help="at most, of each target; 0: any")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    if arguments.inside:
        fuzz(arguments.inside, arguments.runs, arguments.seconds)
    names = arguments.targets or sorted(folder.name for folder in CORPUS.iterdir())
    FINDINGS.mkdir(exist_ok=True)
    failed = [name for name in names if not passes(name, arguments.runs, arguments.seconds)]
    print(f"{len(names)} targets, failed: {', '.join(failed) or 'none'}")
    return len(failed)


def passes(name: str, runs: int, seconds: int) -> bool:
    """Fuzz one target in a process of its own, and say what came of it."""
    program = [sys.executable, "-m", "tests.fuzz.run", "--inside", name]
    limits = ["--runs", str(runs), "--seconds", str(seconds)]
    done = subprocess.run([*program, *limits], capture_output=True, text=True, check=False)
    told = done.stderr.splitlines()
    last = next((line for line in reversed(told) if "cov:" in line), "no coverage")
    print(f"{name}: {last.strip()}", flush=True)
    if done.returncode:
        print(done.stdout[-4000:], "\n".join(told[-30:]), sep="\n", flush=True)
    return done.returncode == 0


def fuzz(name: str, runs: int, seconds: int) -> None:
    """Fuzz a target in this process, which ends with it."""
    atheris = importlib.import_module("atheris")
    import torch

    torch.set_num_threads(1)
    with atheris.instrument_imports(include=["p2p_dml"]):
        from tests.fuzz.targets import TARGETS
    grown = tempfile.mkdtemp(prefix="corpus-")
    options = [f"-runs={runs}", f"-timeout={HANGS_S}", f"-max_len={LONGEST}"]
    options += [f"-artifact_prefix={FINDINGS}/{name}-", f"-max_total_time={seconds}"]
    atheris.Setup([sys.argv[0], *options, grown, str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
