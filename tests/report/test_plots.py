"""Figures: the right lines with the right data, and none where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from p2p_dml.events import RoundDone, Started
from p2p_dml.report import plots
from p2p_dml.report._timeline import measure_timeline
from p2p_dml.report._values import Curve, Floats, PeerRecord, Picture
from p2p_dml.report.load import load
from p2p_dml.report.summary import measure_curve


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Points of each labelled line of the first axes."""
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))  # type: ignore[arg-type]
        for line in figure.axes[0].get_lines()
    }


def curve_of(bytes_out: Sequence[int], accuracy: float = 0.5) -> Curve:
    ones: Floats = np.ones(len(bytes_out))
    return Curve(
        round=np.arange(len(bytes_out)),
        accuracy_mean=accuracy * ones,
        accuracy_std=0.0 * ones,
        loss_mean=ones,
        consensus_distance=0.0 * ones,
        bytes_out=np.array(bytes_out, dtype=np.int64),
        seconds=np.cumsum(ones),
        accuracy_min=accuracy * ones,
        accuracy_max=accuracy * ones,
        train_loss_mean=ones,
        peers=np.ones(len(bytes_out), dtype=np.int64),
    )


def pictures_of(folder: Path) -> list[Picture]:
    run = load(folder)
    return plots.run_pictures(run, measure_curve(run), measure_timeline(run))


def peers_of(folder: Path) -> tuple[PeerRecord, ...]:
    return load(folder).peers


@pytest.mark.parametrize(
    ("over", "x", "label"),
    [
        ("rounds", [1, 3], "round"),
        ("bytes", [1200, 2400], "payload sent by all peers"),
        ("seconds", [21, 41], "time since start"),
    ],
)
def test_accuracy_over(
    write_run: Callable[..., Path], over: plots.Over, x: list[float], label: str
) -> None:
    figure = plots.accuracy({"dpsgd": measure_curve(load(write_run()))}, over)
    drawn_x, drawn_y = lines(figure)["dpsgd"]
    assert drawn_x == x
    assert drawn_y == pytest.approx([0.5, 0.5])
    assert figure.axes[0].get_xlabel() == label
    assert len(figure.axes[0].collections) == 2  # both bands
    assert figure.axes[0].get_legend() is None


def test_accuracy_over_seconds_is_that_of_the_timeline(write_run: Callable[..., Path]) -> None:
    timeline = measure_timeline(load(write_run()))
    x, y = lines(plots.accuracy({"dpsgd": timeline}, "seconds"))["dpsgd"]
    assert (x, y) == (timeline.seconds.tolist(), timeline.accuracy_mean.tolist())


def test_several_runs_have_a_line_each_and_a_legend() -> None:
    figure = plots.accuracy({"a": curve_of([10, 20]), "b": curve_of([10, 20], 0.7)}, "rounds")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert lines(figure)["b"][1] == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize(("other", "scale"), [([10, 150], "linear"), ([10, 2000], "log")])
def test_budgets_a_decade_apart_get_a_logarithmic_axis(other: list[int], scale: str) -> None:
    figure = plots.accuracy({"a": curve_of([10, 100]), "b": curve_of(other)}, "bytes")
    assert figure.axes[0].get_xscale() == scale


@pytest.mark.parametrize(("least", "most"), [(3, 40), (3, 400), (10, 10**7)])
def test_a_logarithmic_axis_has_several_labels(least: int, most: int) -> None:
    figure = plots.accuracy({"a": curve_of([least, 30]), "b": curve_of([10, most])}, "bytes")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    ticks = axes.xaxis.get_major_ticks()
    labels = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    assert 3 <= len(labels) <= 8
    assert all(labels)


def test_a_logarithmic_axis_has_no_place_for_what_was_before_the_first_byte() -> None:
    curves = {"a": curve_of([0, 10]), "b": curve_of([0, 2000]), "silent": curve_of([0, 0])}
    figure = plots.accuracy(curves, "bytes")
    drawn = {label: x for label, (x, _) in lines(figure).items()}
    assert drawn.keys() == {"a", "b"}
    assert np.isnan(drawn["a"][0])
    assert drawn["a"][1] == 10


def test_a_distance_of_zero_is_left_out_of_the_logarithmic_axis() -> None:
    zero, figure = curve_of([1, 2]), plots.consensus({"a": curve_of([1, 2])})
    assert not (zero.consensus_distance > 0).any()
    assert np.isnan(lines(figure)["a"][1]).all()
    assert figure.axes[0].get_yscale() == "log"


def test_what_the_strategy_reports_is_a_median_over_the_peers(
    write_run: Callable[..., Path],
) -> None:
    drawn = lines(plots.reported(peers_of(write_run())))
    assert drawn["representation"] == ([0, 1, 2, 3], [1, 2, 3, 4])
    assert drawn["decision"][1] == [5, 5, 5, 5]


def test_by_round_aligns_peers_and_drops_rounds_without_a_value() -> None:
    nan = np.nan
    rounds, table = plots.by_round(
        [
            (np.array([0, 1, 2]), np.array([1.0, nan, 3.0])),
            (np.array([2, 5]), np.array([4.0, 6.0])),
        ]
    )
    np.testing.assert_array_equal(rounds, [0, 2, 5])
    np.testing.assert_array_equal(table, [[1, 3, nan], [nan, 4, 6]])


def test_metrics_have_a_panel_each(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_meta(tmp_path, peers=2)
    for peer in range(2):
        metrics = {"perplexity": 2.0 + 2 * peer, "grad norm": 1.0}
        append(
            folder,
            peer,
            (1, RoundDone(round=0, loss=None, bytes_out=0, bytes_in=0, neighbours=1,
                          metrics=metrics)),
        )  # fmt: skip
    figure = plots.metrics(peers_of(folder))
    assert [axes.get_ylabel() for axes in figure.axes] == ["perplexity", "grad norm"]
    assert lines(figure)["perplexity"] == ([0], [3])


def test_data_split_shows_samples_and_classes(write_run: Callable[..., Path]) -> None:
    figure = plots.data_split(peers_of(write_run()))
    bars, grid = figure.axes[:2]
    assert [bar.get_height() for bar in bars.patches] == [30, 40, 50]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(grid.images[0].get_array(), [[20, 30, 40], [10, 10, 10]])
    assert [text.get_text() for text in grid.texts] == ["20", "30", "40", "10", "10", "10"]


def test_data_without_classes_is_bars_only(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_meta(tmp_path, peers=1)
    start = Started(pid=1, incarnation=0, endpoint="", parameters=1, samples=9, class_counts=[])
    append(folder, 0, (1, start))
    assert len(plots.data_split(peers_of(folder)).axes) == 1


@pytest.mark.parametrize("count", [200, 1000])
def test_bars_of_very_many_peers_are_one_outline_of_the_same_heights(count: int) -> None:
    """A thousand bars of five phases would take the plotting library many seconds."""
    seconds = {str(i): np.arange(5.0) + i for i in range(count)}
    axes = plots.phases(seconds, "peer").axes[0]
    assert len(axes.patches) == (5 * count if count <= 200 else 5)
    total = 10.0 + 5 * (count - 1)  # of the last peer's phases
    if count > 200:
        last = axes.patches[-1]
        assert isinstance(last, StepPatch)
        tops, _, bottoms = last.get_data()
        assert tops[-1] == total
        assert np.asarray(bottoms)[-1] == total - (count - 1 + 4)
    assert axes.get_ylim()[1] >= total


def test_phases_are_stacked() -> None:
    seconds = {"a": np.array([4.0, 1.0, 2.0, 0.5, 0.5]), "b": np.zeros(5)}
    figure = plots.phases(seconds, "run")
    tops = [bar.get_y() + bar.get_height() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert tops[::2] == [4, 5, 7, 7.5, 8]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["a", "b"]


def test_labels_of_many_bars_are_thinned() -> None:
    figure = plots.phases({str(i): np.ones(5) for i in range(200)}, "peer")
    assert len(figure.axes[0].get_xticks()) == 20


def test_pictures_say_what_the_accuracy_is(write_run: Callable[..., Path]) -> None:
    for evaluate_on, word in (("own", "Personal accuracy, mean"), ("all", "Test accuracy, mean")):
        pictures = pictures_of(write_run(evaluate_on, evaluate_on=evaluate_on))
        assert pictures[0].caption.startswith(word)
    figure = plots.accuracy({"a": curve_of([0, 1, 2])}, "rounds", "personal accuracy")
    assert figure.axes[0].get_ylabel() == "personal accuracy"


def test_a_run_gets_the_pictures_it_has_data_for(write_run: Callable[..., Path]) -> None:
    names = {picture.name for picture in pictures_of(write_run())}
    assert names == {
        "accuracy-over-rounds",
        "accuracy-over-bytes",
        "accuracy-over-seconds",
        "loss",
        "consensus",
        "strategy",
        "data-split",
        "phases",
    }
    fewer = pictures_of(write_run("plain", evaluate=False))
    assert {picture.name for picture in fewer} == {"strategy", "data-split", "phases"}
    assert all(picture.png.startswith(b"\x89PNG") for picture in fewer)


def test_a_run_that_sends_nothing_has_no_accuracy_over_bytes() -> None:
    names = [picture.name for picture in plots.curve_pictures({"local": curve_of([0, 0])})]
    assert names == ["accuracy-over-rounds", "accuracy-over-seconds", "loss"]


def test_rounds_of_a_few_peers_only_are_not_drawn() -> None:
    """As at the end of a run by `duration_s`, where some have done a round more than others."""
    whole = replace(curve_of([1, 2, 3]), peers=np.array([4, 4, 2]))
    ragged = replace(curve_of([1, 2, 3, 4], accuracy=0.5), peers=np.array([4, 4, 2, 1]))
    ragged.accuracy_mean[3] = 0.0
    drawn = [[each.png for each in plots.curve_pictures({"run": c})] for c in (whole, ragged)]
    assert drawn[0] == drawn[1]
