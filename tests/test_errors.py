"""Exit codes are part of the public interface."""

from __future__ import annotations

import pytest

from p2p_dml import errors
from p2p_dml.errors import WORST_FIRST, ExitCode, P2PError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.StartupError, 3),
        (errors.IsolationError, 4),
        (errors.TrainingError, 1),
        (errors.StorageError, 1),
        (errors.TransportError, 6),
        (errors.WireError, 1),
    ],
)
def test_each_error_has_its_documented_code(error: type[P2PError], code: int) -> None:
    assert error("what").exit_code == code
    assert issubclass(error, P2PError)


def test_every_exit_code_is_ranked_once_and_success_is_best() -> None:
    assert sorted(WORST_FIRST) == sorted(ExitCode)
    assert WORST_FIRST[-1] is ExitCode.DONE


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    public = [e for e in P2PError.__subclasses__() if e.__module__ == errors.__name__]
    named: list[type[P2PError]] = [P2PError, *public]
    assert all(error.__name__ in errors.__doc__ for error in named)
