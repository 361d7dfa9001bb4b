"""Frames: any stream of them, cut anywhere, comes out as it went in."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_dml.launchers.ssh.remote.control import (
    MAX_BODY,
    PIPE_BYTES,
    ControlError,
    Decoder,
    Frame,
    Outbox,
    widen,
)

heads = st.dictionaries(st.sampled_from("abc"), st.integers() | st.text(max_size=5), max_size=3)
frames = st.lists(st.builds(Frame, heads, st.binary(max_size=40)), max_size=5)


@given(frames, st.lists(st.integers(1, 30), min_size=1))
def test_frames_survive_any_cutting(sent: list[Frame], cuts: list[int]) -> None:
    stream, decoder = b"".join(frame.encode() for frame in sent), Decoder()
    got: list[Frame] = []
    while stream:
        for cut in cuts:
            got += decoder.feed(stream[:cut])
            stream = stream[cut:]
    assert [frame.body for frame in got] == [frame.body for frame in sent]
    for frame, expected in zip(got, sent, strict=True):
        assert {**frame.head, "size": 0} == {**expected.head, "size": 0}


@pytest.mark.parametrize(
    "stream",
    [
        b"hello\n",
        b"[1]\n",
        b'{"size": -1}\n',
        b'{"size": "9"}\n',
        f'{{"size": {MAX_BODY + 1}}}\n'.encode(),
        b"x" * (1 << 24),
    ],
)
def test_anything_else_is_refused(stream: bytes) -> None:
    with pytest.raises(ControlError):
        list(Decoder().feed(stream))


def test_an_outbox_waits_for_its_reader() -> None:
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    outbox, content = Outbox(), os.urandom(1 << 18)
    outbox.put(content[:100])
    outbox.put(content[100:])
    received = b""
    outbox.flush(sink)
    assert 0 < outbox.num_bytes < len(content)
    while outbox.num_bytes:
        received += os.read(source, 1 << 16)
        outbox.flush(sink)
    os.close(sink)
    while chunk := os.read(source, 1 << 16):
        received += chunk
    os.close(source)
    assert received == content


def test_a_pipe_takes_more_once_it_is_widened() -> None:
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    widen(sink)
    assert os.write(sink, bytes(2 * PIPE_BYTES)) == PIPE_BYTES
    os.close(source)
    os.close(sink)
    widen(sink)  # is none any more
