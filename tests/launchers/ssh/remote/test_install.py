"""Installation as a sequence of commands: what is done, what is not done twice, what failed."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p2p_dml.launchers.ssh.remote.install import (
    Done,
    InstallError,
    Lock,
    Places,
    Steps,
    install,
    prepare,
)

REQUEST: dict[str, Any] = {
    "package": "abc",
    "needs": "xyz",
    "requirements": ["torch>=2.4", "numpy"],
    "inherit": False,
    "wheel": ["packages/abc.whl", 0],
    "wheels": [],
}


def _bring(folder: Path) -> dict[str, Any]:
    """Put a wheel there, as the launcher does."""
    path = folder / "packages" / "abc.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("p2p_dml/__init__.py", "")
    return {**REQUEST, "wheel": ["packages/abc.whl", path.stat().st_size]}


def _play(steps: Steps, folder: Path, codes: Sequence[int] = ()) -> tuple[list[str], Any]:
    """Answer commands with exit codes (then 0); what was run, and the answer."""
    commands: list[str] = []
    left, done = list(codes), None
    while True:
        try:
            command = steps.send(done)
        except StopIteration as stop:
            return commands, stop.value
        assert command is not None
        commands.append(" ".join(command))
        if "-m venv" in commands[-1]:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
            (Path(command[-1]) / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        done = Done(left.pop(0) if left else 0, "line 1\nno space left")


def _prepared(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    lock = Lock(folder)
    answer: dict[str, Any] = _play(prepare(request, folder, lock), folder)[1]
    if "missing" in answer:
        lock.free()
    return answer


def _installed(
    request: dict[str, Any], folder: Path, codes: Sequence[int] = ()
) -> tuple[list[str], Any]:
    lock = Lock(folder)
    try:
        return _play(install(request, folder, lock), folder, codes)
    except InstallError:
        lock.free()
        raise


def test_what_is_missing_is_asked_for_and_then_used(tmp_path: Path) -> None:
    request = {**REQUEST, "wheels": [["wheels/torch.whl", 7]]}
    missing = {"missing": ["packages/abc.whl", "wheels/torch.whl"], "has_env": False}
    assert _prepared(request, tmp_path) == missing
    request |= {"wheel": _bring(tmp_path)["wheel"]}
    commands, answer = _installed(request, tmp_path)
    venv, pip, trial = commands
    assert venv.startswith(f"{sys.executable} -m venv ")
    assert "--no-index --find-links" in pip
    assert pip.endswith("torch>=2.4 numpy")
    assert "import p2p_dml" in trial
    assert answer == Places(tmp_path, request).answer
    assert (Path(answer["path"]) / "p2p_dml" / "__init__.py").exists()
    assert _prepared(request, tmp_path) == answer


def test_another_state_of_the_package_uses_the_same_environment(tmp_path: Path) -> None:
    request = _bring(tmp_path)
    _installed(request, tmp_path)
    newer = {**request, "package": "def", "wheel": ["packages/def.whl", 5]}
    assert _prepared(newer, tmp_path) == {"missing": ["packages/def.whl"], "has_env": True}


@pytest.mark.parametrize("change", [{"needs": "other"}, {"inherit": True}])
def test_other_needs_are_another_environment(tmp_path: Path, change: dict[str, Any]) -> None:
    request = _bring(tmp_path)
    _installed(request, tmp_path)
    assert _prepared({**request, **change}, tmp_path)["has_env"] is False


@pytest.mark.parametrize(
    ("codes", "what"),
    [
        ([1], "cannot make a virtual environment"),
        ([0, 1], "cannot install what the package needs"),
        ([0, 0, 1], "cannot use the package"),
    ],
)
def test_a_failure_says_what_and_why_and_is_tried_again(
    tmp_path: Path, codes: list[int], what: str
) -> None:
    request = _bring(tmp_path)
    with pytest.raises(InstallError) as caught:
        _installed(request, tmp_path, codes)
    assert what in str(caught.value)
    assert "no space left" in str(caught.value)
    assert _prepared(request, tmp_path)["has_env"] is False
    commands, _ = _installed(request, tmp_path)
    assert len(commands) == 3


def test_an_inheriting_environment_sees_what_its_python_sees(tmp_path: Path) -> None:
    request = {**_bring(tmp_path), "inherit": True}
    _installed(request, tmp_path)
    (listed,) = Places(tmp_path, request).env.glob("lib/*/site-packages/inherited.pth")
    paths = listed.read_text(encoding="utf-8").split()
    assert paths == [path for path in sys.path if path.endswith("-packages")]


def test_hosts_that_share_a_folder_take_turns(tmp_path: Path) -> None:
    first, second = Lock(tmp_path), Lock(tmp_path)
    assert first.take()
    waiting = prepare(REQUEST, tmp_path, second)
    assert next(waiting) is None
    first.free()
    with pytest.raises(StopIteration) as stop:
        waiting.send(None)
    assert "missing" in stop.value.value
    second.free()
