"""This very package as a wheel, from wherever it is imported: a checkout or an installation.

Made of the files themselves, with fixed times and in a fixed order: equal files make equal bytes,
so the digest of a wheel says whether a host has it already. Needs neither a compiler nor internet.
A compiled kernel goes along; a host whose Python it is not for passes it over.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib import metadata
from typing import final

from p2p_dml.errors import ConfigError
from p2p_dml.launchers.sources import package_files

_DISTRIBUTION = "p2p-dml"
_SUFFIXES = frozenset({".py", ".typed", ".html", ".c", ".h", ".so"})
_WHEEL = "Wheel-Version: 1.0\nGenerator: p2p-dml\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first day of zip files


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel, the `digest` of its content, and what the package needs, as pip takes it."""

    name: str
    content: bytes
    digest: str
    requirements: tuple[str, ...]

    @property
    def needs(self) -> str:
        """A digest of the requirements."""
        return _digest("\n".join(self.requirements).encode())


def build() -> Wheel:
    """The wheel of the package that runs here; ConfigError if it was never installed."""
    try:
        found = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            "this package was not installed with pip, so hosts cannot be given the same: "
            "pip install -e . in its folder"
        ) from error
    stem = f"p2p_dml-{found.version}"
    about = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    entries = found.read_text("entry_points.txt") or ""
    files = {f"p2p_dml/{name}": content for name, content in package_files(_SUFFIXES)}
    files[f"{stem}.dist-info/METADATA"] = about.encode()
    files[f"{stem}.dist-info/WHEEL"] = _WHEEL.encode()
    files[f"{stem}.dist-info/entry_points.txt"] = entries.encode()
    files[f"{stem}.dist-info/RECORD"] = _record(files, stem).encode()
    content = _zipped(files)
    requirements = sorted(each for each in found.requires or () if "extra ==" not in each)
    return Wheel(
        name=f"{stem}-py3-none-any.whl",
        content=content,
        digest=_digest(content),
        requirements=tuple(requirements),
    )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _record(files: dict[str, bytes], stem: str) -> str:
    """The list of all files with their checksums (PEP 376, PEP 427)."""
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{stem}.dist-info/RECORD,,\n"])


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()
