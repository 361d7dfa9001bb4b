"""Columns of numbers as the text of a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping

from p2p_dml.report._values import Floats, Ints


def csv_of(columns: Mapping[str, Floats | Ints]) -> str:
    """A head and a row per entry; eight digits, and empty cells for what is not finite."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    cells = [[_cell(x) for x in column.tolist()] for column in columns.values()]
    writer.writerows(zip(*cells, strict=True))
    return text.getvalue()


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.8g}" if math.isfinite(value) else ""
