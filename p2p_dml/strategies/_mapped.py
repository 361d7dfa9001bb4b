"""Mixing with degrees of the senders, or with a gradient step among the mapped models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from p2p_dml.kernels.mapped import Term, mapped_mean
from p2p_dml.types import Inbox

SENT = "degree/"
"""Prefix of the scalar that holds a sender's degree for a layer group."""


def mix_mapped(
    own: Mapping[str, Tensor],
    inbox: Inbox,
    degrees: Mapping[str, float],
    sent: Mapping[str, str],
    pull: Mapping[str, Tensor],
    slopes: Mapping[str, Tensor],
) -> None:
    """Replace `own` by φ⁻¹(sum_j a_ij φ_j(w_j) - pull), in place, tensor by tensor.

    `degrees`: own degree of each tensor. `sent`: scalar of a sender's that is the degree of its
    φ_j; if empty, all are of the own degree. `pull`, if not empty, is η∇f of eq. (6). `slopes`, if
    not empty, are filled with the derivative of the result in the own degree, wherever it stands:
    in the root and in φ of the own model, and in that of all others if `sent` is empty.
    """
    if not inbox.messages and not pull:
        for slope in slopes.values():
            slope.zero_()
        return
    peers = sorted({*inbox.messages, inbox.hood.me})
    models, weights = inbox.with_own(own)
    for name, x in own.items():
        terms = []
        for peer, model, weight in zip(peers, models, weights, strict=True):
            is_own = not sent or peer == inbox.hood.me
            degree = degrees[name] if is_own else inbox.messages[peer].scalars[sent[name]]
            terms.append(Term(x=model[name], weight=weight, degree=degree, moves=is_own))
        if pull:
            terms.append(Term(x=pull[name], weight=-1.0, degree=1.0))
        heard = [term for term in terms if term.weight]
        mapped_mean(heard, degrees[name], x.detach(), slopes.get(name))
