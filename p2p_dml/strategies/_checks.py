"""Checks of fields that several strategies have; each raises ValueError saying what it expected."""

from __future__ import annotations

import math


def check_positive(**fields: float) -> None:
    """Every field is finite and above 0."""
    for name, value in fields.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}: expected a finite number above 0")


def check_share(**fields: float) -> None:
    """Every field is at least 0 and below 1."""
    for name, value in fields.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} = {value}: expected at least 0 and below 1")


def check_count(**fields: int) -> None:
    """Every field is at least 1."""
    for name, value in fields.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: expected at least 1")


def check_condition(mu: float, smoothness: float) -> None:
    """0 < mu <= smoothness: strong convexity cannot exceed the largest curvature."""
    check_positive(mu=mu, smoothness=smoothness)
    if mu > smoothness:
        raise ValueError(
            f"mu = {mu}: expected at most smoothness = {smoothness}; mu is the smallest and "
            "smoothness the largest curvature of the loss"
        )
