"""Imports go one way: the order of the package, held on the syntax tree of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import p2p_dml

ROOT = Path(p2p_dml.__file__).parent

LEVELS = (
    ("graph",),
    ("types", "errors", "tensors", "tables", "files"),
    ("kernels", "links", "plugins"),
    ("strategies", "hypernet"),
    (
        "wire",
        "events",
        "event_fields",
        "config",
        "run_fields",
        "keys",
        "addresses",
        "liveness",
        "mailbox",
        "network",
        "pace",
        "wire_format",
    ),
    (
        "peer",
        "drive",
        "simulate",
        "checkpoint",
        "states",
        "meter",
        "reading",
        "attended",
        "overlap",
        "exchange",
        "isolation",
    ),
    ("transports", "learners", "data", "models", "layers", "faults", "watchdog"),
    ("assemble",),
    ("checks",),
    ("launchers", "report", "sweep", "export", "commands", "options", "cli", "console"),
    ("__init__", "__main__"),  # the faces of the package; its version is free for all
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}

NEVER = [
    ("strategies", {"zmq", "socket", "time", "torch.distributed", "asyncio", "threading"}),
    ("kernels", {"zmq", "socket", "time", "torch.distributed", "random"}),
    ("links", {"zmq", "socket", "time", "torch.distributed", "random"}),
    ("transports", {"p2p_dml.models", "p2p_dml.learners", "p2p_dml.strategies", "p2p_dml.data"}),
    ("peer", {"zmq", "socket", "time", "p2p_dml.transports"}),
    ("drive", {"zmq", "socket", "p2p_dml.transports"}),
    ("mailbox", {"zmq", "socket", "time"}),
]
"""(top-level module, what it never imports)."""

LAYERED = {"launchers"}
"""Folders whose modules stand on each other, in one direction, instead of side by side."""

FILES = sorted(ROOT.rglob("*.py"))
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES}


def module_of(file: Path) -> str:
    """Dotted name of a file inside the package, `__init__` spelt out: `links.__init__`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imported(file: Path) -> Iterator[str]:
    """Everything a file imports, in functions too, as dotted names."""
    for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{file}: imports are absolute"
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def own(file: Path) -> Iterator[str]:
    """Modules of this package that a file imports, as `module_of` names them."""
    for name in imported(file):
        first, *rest = name.split(".")
        if first == "p2p_dml":
            tails = (".".join(rest[:length]) for length in range(len(rest), 0, -1))
            candidates = [name for tail in tails for name in (tail, f"{tail}.__init__")]
            yield next((each for each in candidates if each in MODULES), "__init__")


def top(module: str) -> str:
    return module.partition(".")[0]


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_down(file: Path) -> None:
    level = LEVEL_OF[top(module_of(file))]
    above = [name for name in own(file) if name != "__init__" and LEVEL_OF[top(name)] > level]
    assert not above, f"{module_of(file)} imports {above}, which stand above it"


def test_modules_of_one_level_do_not_import_each_other_in_circles() -> None:
    needs: dict[str, set[str]] = {}
    for file in FILES:
        mine = top(module_of(file))
        needs.setdefault(mine, set()).update({top(name) for name in own(file)} - {mine, "__init__"})
    assert set(TopologicalSorter(needs).static_order()) >= set(needs)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_siblings_in_a_folder_do_not_import_each_other(file: Path) -> None:
    *folder, name = module_of(file).split(".")
    if not folder or name == "__init__" or folder[0] in LAYERED:
        return
    siblings = [
        other
        for other in own(file)
        if other.rpartition(".")[0] == ".".join(folder)
        and not other.rpartition(".")[2].startswith("_")
    ]
    assert not siblings, f"{module_of(file)} imports its siblings {siblings}"


@pytest.mark.parametrize("folder", sorted(LAYERED))
def test_layers_of_a_folder_are_no_circle(folder: str) -> None:
    files = [file for file in FILES if top(module_of(file)) == folder]
    needs = {module_of(each): {n for n in own(each) if top(n) == folder} for each in files}
    assert set(TopologicalSorter(needs).static_order()) == set(needs)


@pytest.mark.parametrize(("module", "forbidden"), NEVER)
def test_what_a_module_never_imports(module: str, forbidden: set[str]) -> None:
    files = [file for file in FILES if top(module_of(file)) == module]
    assert files
    found = {
        (module_of(file), name)
        for file in files
        for name in imported(file)
        if any(is_within(name, each) for each in forbidden)
    }
    assert not found


def test_every_module_has_its_place_and_every_place_its_module() -> None:
    assert {top(module_of(file)) for file in FILES} == set(LEVEL_OF)


@pytest.mark.parametrize("module", ["cli", "config", "launchers.local", "launchers.ranks"])
def test_what_runs_before_the_nursery_starts_imports_no_torch(module: str) -> None:
    """The nursery takes 2 s to import it; the command would take as long before that."""
    program = f"import sys, p2p_dml.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
