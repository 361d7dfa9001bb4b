"""Types of fields of a run file that need more than a bound: what may be in them, in words."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

WEEK_S = 604_800.0
"""The most that a wait or a delay may be: beyond it somebody has mistaken the unit."""

_MAX_NAME_BYTES = 200
"""File systems take 255, and the folder of a run adds a date."""

NAME_RULE = (
    f"expected 1 to {_MAX_NAME_BYTES} bytes of printable characters without / and \\, beginning "
    "with a letter, a digit or _"
)


def is_name(text: str) -> bool:
    """Whether `text` can name a run or a sweep, and so a folder below `runs/`."""
    if not text or len(text.encode(errors="replace")) > _MAX_NAME_BYTES:
        return False
    return text.isprintable() and not {"/", "\\"} & {*text} and bool(re.match(r"\w", text))


def as_name(text: str) -> str:
    """The name nearest to `text`, which may be anything, such as the name of a file."""
    safe = "".join("_" if x in "/\\" or not x.isprintable() else x for x in text)
    safe = safe if re.match(r"\w", safe) else f"_{safe}"
    return safe.encode(errors="replace")[:_MAX_NAME_BYTES].decode(errors="ignore")


def _name(text: str) -> str:
    if not is_name(text):
        raise PydanticCustomError("name", NAME_RULE)
    return text


def _different(pair: list[int]) -> list[int]:
    if pair[0] == pair[1]:
        raise PydanticCustomError("pair", "expected two different peers")
    return pair


Name = Annotated[str, AfterValidator(_name)]
Pair = Annotated[list[int], Field(min_length=2, max_length=2), AfterValidator(_different)]
Seconds = Annotated[float, Field(ge=0, le=WEEK_S)]
"""How long something is that may be nothing."""
Wait = Annotated[float, Field(gt=0, le=WEEK_S)]
"""How long something is at most."""
