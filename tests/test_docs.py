"""The documentation holds: links lead somewhere, commands run, examples are the files they show."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest

from p2p_dml import config
from p2p_dml.errors import ExitCode
from p2p_dml.launchers import simulated
from p2p_dml.report import load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("topologies/*.md")])
FENCE = re.compile(r"(<!-- not run -->\n+)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    is_run: bool


def _blocks(page: Path) -> list[Block]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [
        Block(page=page, language=language, text=text, is_run=not skipped)
        for skipped, language, text in found
    ]


def _in_language(language: str, *pages: Path) -> list[Any]:
    blocks = [block for page in pages for block in _blocks(page) if block.language == language]
    return [pytest.param(b, id=f"{b.page.name}-{i}") for i, b in enumerate(blocks)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    relative = [target for target in targets if "://" not in target]
    broken = [target for target in relative if not (page.parent / target).exists()]
    assert not broken


def test_the_pages_are_there() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert names >= {"README.md", "docs/architecture.md", "docs/writing-a-strategy.md"}


# ---- commands --------------------------------------------------------------------------------


def _commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _outcome(words: list[str], tmp_path: Path) -> int:
    """Run one command of the README, shortened where it is a run; its exit code."""
    short = ["--set", "rounds=2", "--quiet"] if words[1] in ("run", "simulate") else []
    out = ["--out", str(tmp_path / "out")] if words[1] in ("run", "simulate", "topology") else []
    command = [sys.executable, "-m", "p2p_dml", *words[1:], *short, *out]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL).returncode


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(words[1:]) <= set(targets)


def _shown_commands() -> list[Any]:
    blocks = [block for block in _blocks(ROOT / "README.md") if block.language == "bash"]
    shown = [words for block in blocks if block.is_run for words in _commands(block)]
    return [pytest.param(words, id=" ".join(words)) for words in shown]


@pytest.mark.parametrize("words", _shown_commands())
def test_a_command_of_the_readme_works(words: list[str], tmp_path: Path) -> None:
    if words[0] == "make":
        _check_make(words)
    else:
        assert words[0] == "p2p-dml"
        assert _outcome(words, tmp_path) == ExitCode.DONE


def test_the_readme_shows_commands() -> None:
    shown = [param.values[0] for param in _shown_commands()]
    assert ["make", "demo"] in shown
    assert {words[1] for words in shown if words[0] == "p2p-dml"} >= {"run", "simulate"}


# ---- tables and code -------------------------------------------------------------------------


@pytest.mark.parametrize("block", _in_language("toml", *PAGES))
def test_a_table_can_be_read(block: Block) -> None:
    tables = tomllib.loads(block.text)
    if "peers" in tables and "strategy" in tables:
        config.parse(tables, ROOT, block.page.name)


STRATEGY_PAGE = ROOT / "docs" / "writing-a-strategy.md"


def _python() -> list[str]:
    return [block.text for block in _blocks(STRATEGY_PAGE) if block.language == "python"]


def test_the_shown_strategy_is_the_example() -> None:
    shown = _python()[0]
    example = (ROOT / "examples" / "median_gossip.py").read_text(encoding="utf-8")
    assert len(shown.splitlines()) <= 25
    assert example.endswith(shown)


@pytest.fixture
def gradient_tracking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of the strategy shown second, put where a run file finds it."""
    imports = (
        "from __future__ import annotations\n"
        "from collections.abc import Generator, Mapping\n"
        "from dataclasses import dataclass\n"
        "from typing import final\n"
        "from p2p_dml.kernels.means import weighted_mean\n"
        "from p2p_dml.tensors import join, part, tmap\n"
        "from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Payload, Tensors\n"
    )
    (tmp_path / "shown_tracking.py").write_text(imports + _python()[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "shown_tracking:GradientTracking"


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize("exchanges", [1, 3])
def test_the_shown_gradient_tracking_learns(
    gradient_tracking: str, tmp_path: Path, exchanges: int
) -> None:
    tables = {
        "peers": 4,
        "rounds": 60,
        "links": "ring",
        "partition": {"name": "dirichlet", "alpha": 0.3},
        "train": {"batch_size": 256},
        "strategy": {"name": gradient_tracking, "lr": 0.3, "exchanges": exchanges},
        "evaluate_every": 0,
    }
    simulated.simulate(config.parse(tables, tmp_path), tmp_path / "out", _ignore)
    for peer in load(tmp_path / "out").peers:
        assert peer.evaluations.accuracy[-1] > 0.8
        assert (peer.rounds.reported["tracked gradient"] > 0).all()
