"""Personal accuracy by hand: what a peer's classes weigh."""

from __future__ import annotations

import pytest

from p2p_dml.learners._metrics import Metrics, Score, on_own_mix

SCORES = {0: Score(3.0, 8.0, 4), 2: Score(0.0, 4.0, 2), 7: Score(5.0, 1.0, 10)}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({0: 1}, Metrics(0.75, 2.0, 4)),
        ({0: 30, 2: 10}, Metrics(0.75 * 0.75, 0.75 * 2.0 + 0.25 * 2.0, 6)),
        ({0: 5, 2: 5, 7: 5}, Metrics(1.25 / 3, 4.1 / 3, 16)),
    ],
)
def test_classes_weigh_as_much_as_the_peer_has_of_them(
    counts: dict[int, int], expected: Metrics
) -> None:
    found = on_own_mix(counts, SCORES)
    assert (found.accuracy, found.loss) == pytest.approx((expected.accuracy, expected.loss))
    assert found.samples == expected.samples


@pytest.mark.parametrize("total", [3, 10, 49, 499, 726])
def test_a_model_that_is_always_right_has_exactly_one(total: int) -> None:
    counts = {label: label + 1 for label in range(9)} | {9: total}
    scores = {label: Score(7.0, 0.7, 7) for label in counts}
    assert on_own_mix(counts, scores).accuracy == 1.0


def test_equal_shares_of_equal_tests_are_the_accuracy_on_the_classes_together() -> None:
    rights = {1: 12.0, 4: 30.0, 5: 7.0}
    scores = {label: Score(right, right / 2, 40) for label, right in rights.items()}
    found = on_own_mix(dict.fromkeys(rights, 125), scores)
    assert found.accuracy == pytest.approx(49 / 120)
    assert found.loss == pytest.approx(24.5 / 120)
