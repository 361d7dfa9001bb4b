"""The package as a wheel: the same bytes each time, all that it needs, and pip takes it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import p2p_dml
from p2p_dml.launchers.ssh.wheel import Wheel, build


@pytest.fixture(scope="module")
def wheel() -> Wheel:
    """The wheel of this checkout."""
    return build()


def _archive(wheel: Wheel) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(wheel.content))


def test_equal_files_make_equal_bytes(wheel: Wheel) -> None:
    assert build() == wheel


def test_it_holds_every_module_and_what_they_read(wheel: Wheel) -> None:
    root = Path(p2p_dml.__file__).parent
    with _archive(wheel) as archive:
        names = set(archive.namelist())
    expected = {f"p2p_dml/{path.relative_to(root)}" for path in root.rglob("*.py")}
    assert names >= expected | {"p2p_dml/py.typed", "p2p_dml/report/page.html"}
    assert not any("__pycache__" in name for name in names)


def test_its_record_holds(wheel: Wheel) -> None:
    with _archive(wheel) as archive:
        (record,) = (name for name in archive.namelist() if name.endswith("RECORD"))
        for name, digest, size in csv.reader(io.StringIO(archive.read(record).decode())):
            if name == record:
                assert (digest, size) == ("", "")
                continue
            content = archive.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            assert (digest, int(size)) == (f"sha256={found.decode()}", len(content))


def test_it_needs_what_the_package_needs_and_no_tools_of_its_tests(wheel: Wheel) -> None:
    names = {each.partition(">")[0] for each in wheel.requirements}
    assert names >= {"torch", "numpy", "pyzmq"}
    assert not names & {"pytest", "ruff", "mypy"}


def test_unpacked_it_is_the_package(wheel: Wheel, tmp_path: Path) -> None:
    with _archive(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import p2p_dml, importlib.metadata as m; print(p2p_dml.__file__, m.version('p2p-dml'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [str(tmp_path / "p2p_dml" / "__init__.py"), p2p_dml.__version__]
