"""What an export has come to, as values and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2p_dml.types import PeerId

TOLERANCE = 1e-5
"""Of the outputs, relative to the largest where that is above 1."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """The small dense model against the whole one.

    `multiply_adds` are of linear layers and convolutions for one sample; `time_ratio` is the time
    of a forward pass where that of the whole model is 1; the outputs are of `samples` test samples.
    """

    parameters: int
    multiply_adds: int
    multiply_adds_whole: int
    file_bytes: int
    time_ratio: float
    largest_difference: float
    largest_output: float
    samples: int

    @property
    def is_equal(self) -> bool:
        """Whether the outputs are the same within `TOLERANCE`; not if some are not finite."""
        return self.largest_difference <= TOLERANCE * max(1.0, self.largest_output)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was exported to `folder`; its fields but that one are `export.json`.

    A sample is of `shape` [C, …] and normalised by `mean` and `std`, one per channel or one for
    all, None if it is taken as it is; without a data set all three are None. `parameters` and
    `nonzero` count the numbers of the whole model, `dense_bytes` is their size, `sparse_bytes` that
    of the file of values and bitmaps. `empty_outputs` is the share of filters and neurons without
    any weight, by tensor. `small` is None where there is no small dense model, and `why_not` says
    why.
    """

    folder: Path
    run: str
    peer: PeerId
    round: int
    version: str
    shape: tuple[int, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    parameters: int
    nonzero: int
    dense_bytes: int
    sparse_bytes: int
    empty_outputs: Mapping[str, float]
    small: Small | None
    why_not: str | None


def table(exported: Exported) -> RenderableType:
    """The figures of an export beside those of the whole model."""
    rows = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column("")
    for head in ("whole", "exported", "share"):
        rows.add_column(head, justify="right")
    _add(rows, "numbers other than 0", exported.parameters, exported.nonzero)
    _add(rows, "bytes, values and bitmap", exported.dense_bytes, exported.sparse_bytes)
    small = exported.small
    if small is None:
        return Group(rows, Text(f"no small dense model: {exported.why_not}"))
    _add(rows, "small model: parameters", exported.parameters, small.parameters)
    _add(rows, "small model: bytes", exported.dense_bytes, small.file_bytes)
    _add(rows, "small model: multiply-adds", small.multiply_adds_whole, small.multiply_adds)
    rows.add_row("small model: forward pass", "", "", _percent(small.time_ratio))
    outputs = (
        f"outputs differ by at most {small.largest_difference:.1e} over {small.samples} test "
        f"samples; the largest is {small.largest_output:.3g}"
    )
    return Group(rows, Text(outputs))


def _add(rows: Table, name: str, whole: int, exported: int) -> None:
    rows.add_row(name, f"{whole:,}", f"{exported:,}", _percent(exported / max(1, whole)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
