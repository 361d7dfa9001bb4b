"""Numbers as people read them: bytes, durations, shares; an absent figure is a dash."""

from __future__ import annotations

import math

ABSENT = "–"
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def human_bytes(value: float | None) -> str:
    """Three significant digits in decimal units: 1234567 is `1.23 MB`."""
    if value is None or not math.isfinite(value):
        return ABSENT
    size, unit = value, 0
    # 999.5 would round to 1000 of the smaller unit.
    while abs(size) >= 999.5 and unit < len(_BYTE_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} B" if unit == 0 else f"{digits(size)} {_BYTE_UNITS[unit]}"


def human_seconds(value: float | None) -> str:
    """`0.42 s`, `12.3 s`, `2 min 05 s`, `1 h 02 min`."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value < 99.95:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(value: float) -> str:
    """`m:ss` or `h:mm:ss`, for figures that change while one looks."""
    minutes, seconds = divmod(max(0, int(value)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def percent(value: float | None) -> str:
    """A share in [0, 1] as `93.4 %`."""
    return f"{100 * value:.1f} %" if value is not None and math.isfinite(value) else ABSENT


def digits(value: float | None) -> str:
    """Three significant digits, scientific only outside 0.001 … 99999."""
    if value is None or not math.isfinite(value):
        return ABSENT
    # Rounded first: 0.9996 has three digits as 1.00, not as 1.000.
    size = abs(float(f"{value:.3g}"))
    if size and not 1e-3 <= size < 99999.5:
        return f"{value:.2e}"
    places = max(0, 2 - math.floor(math.log10(size))) if size else 0
    return f"{value:.{places}f}"


def count(value: int | None) -> str:
    """An integer in groups of three: 12,345."""
    return ABSENT if value is None else f"{value:,}"


def plural(number: int, noun: str) -> str:
    """`1 message`, `3 messages`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
