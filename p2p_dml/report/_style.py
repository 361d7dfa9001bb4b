"""House style of all figures: size, colours, axes; nothing global is changed.

Colours: Okabe and Ito 2008, distinguishable with every common colour-vision deficiency.
"""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from p2p_dml.report._units import human_bytes, human_seconds

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
INK = "#333333"
FAINT = "#DDDDDD"
SEQUENTIAL = "Blues"
WIDTH_IN = 9.0
"""Figures are 900 px wide at 100 dpi; they are drawn at 1.5 times that for sharp screens."""

_DPI = 150

# `:g` drops the zeros that figures in a table keep, and the noise of 100 * 0.57.
AS_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
AS_BYTES = FuncFormatter(lambda value, _: _short(human_bytes(value)))
AS_SECONDS = FuncFormatter(lambda value, _: f"{value:g} s" if value < 100 else human_seconds(value))


def new_figure(height_in: float = 4.0) -> Figure:
    """An empty figure of the house's width; its layout keeps labels from being clipped."""
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained", facecolor="white")


def dress(axes: Axes, x_label: str, y_label: str, *, grid: bool = True) -> Axes:
    """Label the axes and reduce the frame to its left and bottom lines."""
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    if grid:
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return axes


def whole_numbers(axis: Axis, most: int = 10) -> None:
    """Put ticks on integers only, at most about `most` of them, even on a range of one."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=most))


def colour(index: int) -> str:
    """The colour of line `index`; repeats after the palette, then `line_style` differs."""
    return PALETTE[index % len(PALETTE)]


def line_style(index: int) -> str:
    """The line style of line `index`."""
    return LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)]


def add_legend(axes: Axes, num_lines: int) -> None:
    """Put a legend where it hides least; beside the axes if there are many lines."""
    if num_lines > len(PALETTE):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    else:
        axes.legend(frameon=False, fontsize=9)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _short(text: str) -> str:
    """`1.50 MB` as `1.5 MB`."""
    number, unit = text.split()
    return f"{float(number):g} {unit}"
