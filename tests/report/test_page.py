"""The HTML page: complete, self-contained, and safe with what others wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from p2p_dml.report._values import Picture, Run, Summary
from p2p_dml.report.load import load
from p2p_dml.report.page import compare_page, run_page
from p2p_dml.report.summary import measure_curve, summarise

PICTURE = Picture(name="a", title="Accuracy", caption="Over rounds.", png=b"\x89PNG")


class Reader(HTMLParser):
    """Collects tags, references and text; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def summary_of(run: Run) -> Summary:
    return summarise(run, measure_curve(run))


@pytest.fixture
def page(write_run: Callable[..., Path]) -> str:
    run = load(write_run(killed=True))
    return run_page(run, summary_of(run), [PICTURE])


def test_the_page_needs_no_other_file(page: str) -> None:
    reader = Reader(page)
    assert reader.references == ["data:image/png;base64,iVBORw=="]
    assert not re.search(r"@import|url\(|https?://", page)


def test_what_peers_wrote_is_text(page: str) -> None:
    reader = Reader(page)
    assert "script" not in reader.tags
    assert "<script>alert('x')</script> & \"quotes\"" in reader.text


def test_the_page_tells_what_happened(page: str) -> None:
    text = Reader(page).text
    for part in (
        "run: dpsgd on 3 peers",
        "70.0 % ± 10.0 (60.0 – 80.0)",
        "peer 2 was lost after round 1: killed, or still running",
        "peer 2 was declared dead by 1 neighbour, first in round 2",
        "1 message of peer 0 rejected, first by peer 1 in round 2",
        "peer 1 was isolated in 1 round, first in round 3",
        'name = "dpsgd"',
        "p2p-dml run x.toml",
        "Over rounds.",
    ):
        assert part in text


def test_personal_accuracy_is_called_so_and_shown_from_peer_to_peer(
    write_run: Callable[..., Path],
) -> None:
    run = load(write_run(evaluate_on="own"))
    text = Reader(run_page(run, summary_of(run), [])).text
    assert text.count("personal accuracy") == 2  # among the key figures and over the peers
    assert "from peer to peer" in text
    assert "20.0 35.0 60.0 70.0 76.0 %" in text
    assert "10, 25, 50, 75, 90 % quantiles; worst peer 2" in text


def test_the_usual_accuracy_is_not_called_personal(write_run: Callable[..., Path]) -> None:
    run = load(write_run())
    text = Reader(run_page(run, summary_of(run), [])).text
    assert "personal" not in text and "from peer to peer" not in text


def test_a_run_that_never_evaluated_has_no_quantiles(write_run: Callable[..., Path]) -> None:
    run = load(write_run(evaluate=False, evaluate_on="own"))
    text = Reader(run_page(run, summary_of(run), [])).text
    assert "personal accuracy" in text and "from peer to peer" not in text


def test_a_quiet_run_says_so(write_run: Callable[..., Path]) -> None:
    run = load(write_run())
    assert "nothing: no peer was lost" in Reader(run_page(run, summary_of(run), [])).text


def test_comparison_has_a_row_per_run(write_run: Callable[..., Path]) -> None:
    runs = {name: load(write_run(name, name == "b")) for name in ("a", "b")}
    together = {name: (run, summary_of(run)) for name, run in runs.items()}
    reader = Reader(compare_page(together, [PICTURE]))
    assert reader.tags.count("tr") == 3
    assert "Comparison of 2 runs" in reader.text
    assert "own" not in reader.text


def test_personal_accuracies_stand_out_in_a_comparison(write_run: Callable[..., Path]) -> None:
    runs = {name: load(write_run(name, evaluate_on=name)) for name in ("own", "all")}
    together = {name: (run, summary_of(run)) for name, run in runs.items()}
    assert Reader(compare_page(together, [])).text.count("± 29.4 own") == 1
