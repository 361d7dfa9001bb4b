"""Mail of any transport on the device of the model."""

from __future__ import annotations

import torch

from p2p_dml.transports.at_home import at_home
from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.types import Payload, Tag

META = torch.device("meta")
"""A device that every torch has, if one that holds no values."""


def test_on_the_cpu_it_is_the_transport_itself() -> None:
    transport = MemoryTransport(0, Hub())
    assert at_home(transport, torch.device("cpu")) is transport


def test_what_comes_is_brought_to_the_device() -> None:
    hub = Hub()
    a, b = MemoryTransport(0, hub), at_home(MemoryTransport(1, hub), META)
    for round_ in (1, 2):
        a.post(Tag(round_), {1: Payload({"x": torch.ones(2, 3)}, {"w": 0.5})})
    mail = b.collect(Tag(2), [0], 0.0)
    payloads = [mail.on_time[0], *(message.payload for message in mail.late)]
    assert len(payloads) == 2
    for payload in payloads:
        x = payload.tensors["x"]
        assert (x.device, x.shape, payload.scalars) == (META, (2, 3), {"w": 0.5})
    assert mail.num_bytes == 2 * 24


def test_all_else_is_the_transports_own() -> None:
    hub = Hub()
    a, b = at_home(MemoryTransport(0, hub), META), MemoryTransport(1, hub)
    assert a.elastic
    a.expect([1])
    assert a.post(Tag(1), {1: Payload({"x": torch.ones(2)})}) == 8
    assert b.collect(Tag(1), [0], 0.0).on_time[0].tensors["x"].tolist() == [1.0, 1.0]
    a.close()
