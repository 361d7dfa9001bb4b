"""Sockets that encrypt, and know each other by key (CURVE, ZeroMQ RFC 26)."""

from __future__ import annotations

import zmq

from p2p_dml.keys import KeyPair

_DOMAIN = b"p2p_dml"


def use(each: zmq.Socket[bytes], own: KeyPair) -> None:
    """Have a socket show and prove these keys."""
    each.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
    each.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())


def accept(each: zmq.Socket[bytes], own: KeyPair) -> None:
    """Have a socket take connections of those only whom the ZAP handler of its context lets in.

    Where there is no handler, or it does not answer, nobody gets in.
    """
    use(each, own)
    each.setsockopt(zmq.CURVE_SERVER, 1)
    each.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
    each.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def expect(each: zmq.Socket[bytes], public: str) -> None:
    """Have the next connection of a socket go to the holder of this key, or to nobody."""
    each.setsockopt(zmq.CURVE_SERVERKEY, public.encode())
