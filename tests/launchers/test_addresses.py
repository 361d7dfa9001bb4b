"""Where peers listen and look for each other, as the run file says."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from p2p_dml import config
from p2p_dml.errors import ConfigError
from p2p_dml.launchers.addresses import addresses, bind_of, find, places


def run(**transport: object) -> config.RunConfig:
    tables = {"peers": 2, "rounds": 1, "strategy": "dpsgd", "links": "ring"}
    return config.parse({**tables, "transport": transport}, Path())


GIVEN = ["tcp://10.0.0.1:5800", "tcp://10.0.0.2:5800"]


@pytest.mark.parametrize(
    ("transport", "bind", "judged_by"),
    [
        ({}, "tcp://127.0.0.1:5801", ["tcp://127.0.0.1:5800", "tcp://127.0.0.1:5801"]),
        ({"addresses": GIVEN}, GIVEN[1], GIVEN),
        ({"addresses": GIVEN, "listen": "tcp://*:7"}, "tcp://*:7", GIVEN),
        ({"directory": "tcp://127.0.0.1:9"}, "tcp://127.0.0.1:*", ["tcp://127.0.0.1:9"]),
        ({"directory": "tcp://10.0.0.9:9"}, "tcp://*:*", ["tcp://10.0.0.9:9"]),
        ({"directory": "tcp://h:9", "listen": "tcp://*:7"}, "tcp://*:7", ["tcp://h:9"]),
    ],
)
def test_where_a_peer_listens_and_what_says_whether_to_encrypt(
    transport: dict[str, object], bind: str, judged_by: list[str]
) -> None:
    settings = run(**transport)
    assert bind_of(settings, 1) == bind
    assert places(settings, 1) == [*judged_by, bind]


def test_fixed_addresses_need_no_directory() -> None:
    with ExitStack() as stack:
        assert find(run(addresses=GIVEN), 1, GIVEN[1], bytes, None, stack) == dict(enumerate(GIVEN))


@pytest.mark.parametrize("given", [GIVEN[:1], [GIVEN[0], GIVEN[0]], [*GIVEN, "tcp://h:1"]])
def test_every_peer_has_an_address_of_its_own(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"transport\.addresses: expected 2 different addresses"):
        addresses(run(addresses=given))
