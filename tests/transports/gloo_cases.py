"""A program for torchrun with three ranks: what a torchdist transport promises, case by case.

python gloo_cases.py FOLDER [DEVICE] writes what went wrong at each rank to FOLDER/RANK.json, by
case, None if nothing did. Every function whose name begins with `case_` is run by all ranks at
once, around new transports of the same group.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from p2p_dml.errors import ConfigError, StartupError, TransportError
from p2p_dml.transports.torchdist import Group, TorchDistTransport
from p2p_dml.types import Coded, Mail, Payload, PeerId, Sent, Tag
from p2p_dml.wire import DTYPES

RANKS = 3
PATIENT_S = 30.0
SHORT_S = 0.5
CPU = torch.device("cpu")
HOME = torch.device(sys.argv[2] if len(sys.argv) > 2 else "cpu")
"""Where payloads are and are wanted; gloo itself is on the CPU."""
ALL = range(RANKS)


@final
class Peer:
    """This rank's transport, and the shapes of exchanges that cases are made of."""

    def __init__(self, group: Group, **options: Any) -> None:
        self.me: PeerId = group.me
        self.transport = TorchDistTransport(group, b"r" * 16, home=HOME, **options)

    def swap(
        self, tag: Tag, outbox: Mapping[PeerId, Payload], senders: set[PeerId], s: float = PATIENT_S
    ) -> Mail:
        """One exchange; what was posted is overwritten before it is sent."""
        sent = [x for payload in outbox.values() for x in payload.tensors.values()]
        self.transport.post(tag, outbox)
        for x in sent:
            x.detach().fill_(1)
        return self.transport.collect(tag, sorted(senders, reverse=True), s)

    def tell(self, tag: Tag, make: Callable[[PeerId], Payload]) -> Mail:
        """All send all what `make` gives for the receiver."""
        others = {j for j in ALL if j != self.me}
        return self.swap(tag, {j: make(j) for j in sorted(others)}, others)


def number(x: float) -> Payload:
    return Payload({"x": torch.tensor([x], device=HOME)})


def always(payload: Payload) -> Callable[[PeerId], Payload]:
    """The same for every receiver."""
    return lambda receiver: payload


def values(mail: Mail) -> dict[PeerId, float]:
    return {j: payload.tensors["x"].item() for j, payload in mail.on_time.items()}


def raw(x: Tensor) -> Tensor:
    """The bytes of a tensor: NaNs compare too."""
    return x.cpu().reshape(-1).view(torch.uint8)


@contextmanager
def refused(kind: type[Exception], *words: str) -> Any:
    """Expect an error with these words in it."""
    try:
        yield
    except kind as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError(f"no {kind.__name__} with {words}")


def every_dtype() -> dict[str, Tensor]:
    """Three tensors of each dtype, with bytes that all differ."""
    made: dict[str, Tensor] = {}
    for name, dtype in DTYPES.items():
        words = (torch.arange(21 * 8) % 251).to(torch.uint8)
        matrix = (words % 2).bool()[:21] if name == "bit" else words.view(dtype)[:21].clone()
        made[f"{name} matrix"] = matrix.view(3, 7)
        made[f"{name} single"] = torch.ones((), dtype=dtype)
        made[f"{name} nothing"] = torch.ones((0, 4), dtype=dtype)
    return {name: x.to(HOME) for name, x in made.items()}


def expect_every_dtype(received: Mapping[str, Tensor]) -> None:
    sent = every_dtype()
    assert list(received) == list(sent)
    for key, x in sent.items():
        assert (received[key].dtype, received[key].device) == (x.dtype, x.device)
        assert received[key].shape == x.shape
        assert torch.equal(raw(received[key]), raw(x))


def case_every_dtype_arrives_bit_for_bit(group: Group) -> None:
    mail = Peer(group).tell(Tag(1), lambda receiver: Payload(every_dtype()))
    for payload in mail.on_time.values():
        expect_every_dtype(payload.tensors)


def case_every_dtype_arrives_in_coded_payloads(group: Group) -> None:
    transport = Peer(group).transport
    others = [j for j in ALL if j != group.me]
    sent = Coded(dict.fromkeys(others, Payload(every_dtype())), lambda sender, payload: payload)
    transport.post(Tag(1), sent)
    for payload in transport.collect(Tag(1), others, PATIENT_S).on_time.values():
        expect_every_dtype(payload.tensors)


def case_views_and_gradients_travel_as_plain_values(group: Group) -> None:
    matrix = torch.arange(12.0, device=HOME).view(3, 4).requires_grad_()
    transport, others = Peer(group).transport, [j for j in ALL if j != group.me]
    payload = Payload({"transposed": matrix.T, "column": matrix[:, 1]})
    transport.post(Tag(1), dict.fromkeys(others, payload))
    for got in transport.collect(Tag(1), others, PATIENT_S).on_time.values():
        assert torch.equal(got.tensors["transposed"], matrix.detach().T)
        assert got.tensors["column"].tolist() == [1.0, 5.0, 9.0]
        assert not got.tensors["column"].requires_grad


def case_everybody_hears_everybody_in_ascending_order(group: Group) -> None:
    peer = Peer(group)
    for tag in (Tag(1, 0), Tag(1, 1), Tag(2, 0), Tag(2, 1)):
        code = 100.0 * tag.round + 10 * tag.exchange
        mail = peer.tell(tag, always(number(code + peer.me)))
        assert values(mail) == {j: code + j for j in ALL if j != peer.me}
        assert list(mail.on_time) == sorted(mail.on_time)
        assert mail.num_bytes == 4 * 2


def case_receivers_may_get_different_payloads(group: Group) -> None:
    peer = Peer(group)
    mail = peer.tell(Tag(1), lambda receiver: number(10.0 * peer.me + receiver))
    assert values(mail) == {j: 10.0 * j + peer.me for j in ALL if j != peer.me}


def case_scalars_travel_and_may_change(group: Group) -> None:
    peer = Peer(group)
    rounds = [{}, {"weight": 0.1, "loss": math.inf}, {"tiny": 5e-324, "whole": 3}]
    for round_, scalars in enumerate(rounds, 1):
        mail = peer.tell(Tag(round_), always(Payload({}, scalars)))
        assert [dict(p.scalars) for p in mail.on_time.values()] == [scalars, scalars]


def case_bytes_are_those_of_the_block(group: Group) -> None:
    """Hand number: 12 bytes, then at the next multiple of 64 nine bits in two bytes."""
    peer, payload = Peer(group), Payload({"x": torch.zeros(3), "mask": torch.ones(9).bool()})
    outbox = {j: payload for j in ALL if j != peer.me}
    assert peer.transport.post(Tag(1), outbox) == 2 * 66
    assert peer.transport.collect(Tag(1), list(outbox), PATIENT_S).num_bytes == 2 * 66


def case_large_messages_stay_when_more_arrive(group: Group) -> None:
    peer, kept = Peer(group), []
    for round_ in (1, 2, 3, 4):
        x = torch.full((1 << 18,), float(round_), device=HOME)
        mail = peer.tell(Tag(round_), always(Payload({"x": x})))
        kept.append([payload.tensors["x"] for payload in mail.on_time.values()])
    for round_, tensors in enumerate(kept, 1):
        assert all(
            torch.equal(x, torch.full((1 << 18,), float(round_), device=HOME)) for x in tensors
        )


def case_one_way_links(group: Group) -> None:
    """0 → 1 → 2: a peer that sends nothing learns the layout from others."""
    peer = Peer(group)
    for round_ in (1, 2):
        outbox = {peer.me + 1: number(peer.me + 0.5)} if peer.me < 2 else {}
        mail = peer.swap(Tag(round_), outbox, {peer.me - 1} if peer.me else set())
        assert values(mail) == ({peer.me - 1: peer.me - 0.5} if peer.me else {})


def case_nobody_sends_then_some_do(group: Group) -> None:
    """Peer 2 has no links; that of 0 and 1 comes in round 2."""
    peer = Peer(group)
    assert not peer.swap(Tag(1), {}, set()).on_time
    other = {0: 1, 1: 0}.get(peer.me)
    for round_ in (2, 3):
        outbox, senders = (
            ({other: number(1.0 + peer.me)}, {other}) if other is not None else ({}, set())
        )
        mail = peer.swap(Tag(round_), outbox, senders)
        assert values(mail) == ({other: 1.0 + other} if other is not None else {})


def coded(peer: Peer, tag: Tag, make: Callable[[PeerId], Payload]) -> Mail:
    others = [j for j in ALL if j != peer.me]
    peer.transport.post(tag, Coded({j: make(j) for j in others}, lambda sender, p: p))
    return peer.transport.collect(tag, others, PATIENT_S)


def case_coded_payloads_need_not_look_alike(group: Group) -> None:
    peer = Peer(group, debug=True)

    def made(sender: PeerId, receiver: PeerId, round_: int) -> Payload:
        size = [0, 1, (1 << 16) + 1][(sender + receiver + round_) % 3]
        return Payload(
            {f"from {sender}": torch.full((size,), float(round_), device=HOME)}, {"size": size}
        )

    for round_ in (1, 2, 3):
        mine = {j: made(peer.me, j, round_) for j in ALL}
        mail = coded(peer, Tag(round_), mine.__getitem__)
        expected = {j: made(j, peer.me, round_) for j in ALL if j != peer.me}
        assert list(mail.on_time) == list(expected)
        for j, payload in expected.items():
            assert mail.on_time[j].scalars == payload.scalars
            assert torch.equal(mail.on_time[j].tensors[f"from {j}"], payload.tensors[f"from {j}"])
        assert mail.num_bytes == sum(4 * int(p.scalars["size"]) for p in expected.values())


def case_coded_payloads_over_the_limit_are_refused(group: Group) -> None:
    peer = Peer(group, max_message_bytes=1 << 10)
    with refused(TransportError, "announces", "limit 1024 (transport.max_message_bytes)"):
        coded(peer, Tag(1), lambda receiver: Payload({"x": torch.zeros(1 << 10)}))


def case_a_tensor_that_cannot_travel(group: Group) -> None:
    peer = Peer(group)
    with refused(TypeError, "tensor 'z': torch.complex64 cannot be sent"):
        peer.transport.post(Tag(1), {0: Payload({"z": torch.zeros(2, dtype=torch.complex64)})})


def case_a_layout_that_changes(group: Group) -> None:
    peer = Peer(group)
    peer.tell(Tag(1), lambda receiver: number(1.0))
    peer.tell(Tag(1, 1), lambda receiver: Payload({"x": torch.zeros(2)}))  # another exchange
    with refused(ConfigError, f"peer {peer.me}, round 2", "('x', 'float32', (2,))", "Coded"):
        peer.tell(Tag(2), lambda receiver: Payload({"x": torch.zeros(2)}))


def case_layouts_that_differ_between_peers(group: Group) -> None:
    peer = Peer(group)
    with refused(ConfigError, "round 1", "those of peer 2", "peer 0 sends"):
        peer.tell(Tag(1), lambda receiver: Payload({"x": torch.zeros(1 + (peer.me == 2))}))


def case_layouts_that_differ_between_receivers(group: Group) -> None:
    with refused(ConfigError, "must look alike"):
        Peer(group).tell(Tag(1), lambda receiver: Payload({f"to {receiver}": torch.zeros(1)}))


def case_debug_names_a_pair_that_does_not_match(group: Group) -> None:
    peer = Peer(group, debug=True)
    outbox: Sent = {1: number(1.0)} if peer.me == 0 else {}
    peer.transport.post(Tag(1), outbox)
    with refused(TransportError, "round=1", "peer 0 sends to peer 1, which awaits nothing of it"):
        peer.transport.collect(Tag(1), [], PATIENT_S)


def case_debug_names_who_is_in_another_round(group: Group) -> None:
    peer, tag = Peer(group, debug=True), Tag(2 if group.me == 1 else 1)
    peer.transport.post(tag, {})
    with refused(TransportError, "peer 0 is in round 1", "peer 1 in round 2"):
        peer.transport.collect(tag, [], PATIENT_S)


def case_who_is_out_of_step_is_refused_by_both_ends(group: Group) -> None:
    """Links 0 ↔ 1; peer 1 has lost a round."""
    peer = Peer(group)
    peer.tell(Tag(1), lambda receiver: number(1.0))
    other = {0: 1, 1: 0}.get(peer.me)
    if other is None:
        return
    mine, theirs = (3, 2) if peer.me == 0 else (2, 3)
    with refused(TransportError, f"expected peer {other}, round {mine}", f"round {theirs}"):
        peer.swap(Tag(mine), {other: number(1.0)}, {other})


def case_another_run_is_named(group: Group) -> None:
    digest = b"f" * 16 if group.me == 1 else b"r" * 16
    transport = TorchDistTransport(group, digest, home=HOME)
    with refused(StartupError, "peers [1] are of another run than peer 0", "666666666666"):
        transport.open(PATIENT_S)


def case_the_same_run_opens(group: Group) -> None:
    peer = Peer(group)
    peer.transport.open(PATIENT_S)
    peer.transport.expect([0, 1])
    peer.transport.close()
    peer.transport.close()
    assert not peer.transport.elastic


def case_what_was_not_posted_is_not_collected(group: Group) -> None:
    with refused(ValueError, "nothing was posted"):
        Peer(group).transport.collect(Tag(1), [0], PATIENT_S)


def last_case_who_is_silent_is_named_in_time(group: Group) -> None:
    """Links 0 ↔ 2 and 1 ↔ 2, and peer 2 does nothing. Afterwards the group is broken."""
    peer = Peer(group)
    peer.tell(Tag(1), lambda receiver: number(1.0))
    if peer.me != 2:
        with refused(TransportError, "no answer of peer 2 in time"):
            peer.swap(Tag(2), {2: number(1.0)}, {2}, SHORT_S)


def outcomes(group: Group) -> dict[str, str | None]:
    """What went wrong, by case."""
    cases = {name: act for name, act in globals().items() if name.startswith("case_")}
    found: dict[str, str | None] = {}
    for name, act in cases.items():
        found[name] = outcome(act, group)
        dist.barrier()
    last = last_case_who_is_silent_is_named_in_time
    return found | {last.__name__: outcome(last, group)}


def outcome(act: Callable[[Group], None], group: Group) -> str | None:
    try:
        act(group)
    except Exception:
        return traceback.format_exc()
    return None


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    store, me, num_ranks = next(rendezvous("env://"))
    dist.init_process_group("gloo", store=store, rank=me, world_size=num_ranks)
    found = outcomes(Group(CPU))
    (folder / f"{me}.json").write_text(json.dumps(found), encoding="utf-8")
    store.set(f"over/{me}", "")
    store.wait([f"over/{rank}" for rank in ALL])  # who leaves earlier is not silent, but gone
    os._exit(0)  # the group is broken


if __name__ == "__main__":
    main(Path(sys.argv[1]))
