"""Mixing weights: from a graph to one peer's row and column of the mixing matrix W.

Each rule asks the graph for a peer's own row and for its neighbours' degrees, which are never sent.
W acts as x_i <- sum_j w_ij x_j.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from p2p_dml.types import Graph, MixingRule, Neighbourhood, PeerId

Matrix = NDArray[np.float64]


def metropolis(graph: Graph, me: PeerId) -> Neighbourhood:
    """Weight a link 1 / (1 + the larger degree of its ends): symmetric, doubly stochastic W.

    Source: Xiao, Boyd, Kim 2007, local Metropolis-Hastings weights.
    Raises ValueError, naming a one-way link, if the links of `me` are not symmetric.
    """
    heard = graph.senders_of(me)
    if heard != graph.receivers_of(me):
        raise ValueError(_one_way(graph, me))
    degrees = zip(heard, graph.in_degrees(heard), strict=True)
    weights = {j: 1.0 / (1 + max(len(heard), degree)) for j, degree in degrees}
    return Neighbourhood(me, 1.0 - math.fsum(weights.values()), weights, weights)


def _one_way(graph: Graph, me: PeerId) -> str:
    unanswered = min(set(graph.senders_of(me)) ^ set(graph.receivers_of(me)))
    hears_me = unanswered in graph.receivers_of(me)
    listener, speaker = (unanswered, me) if hears_me else (me, unanswered)
    return (
        f"metropolis needs symmetric links, but peer {listener} hears peer {speaker} and not the "
        "other way round; choose push_uniform or neighbour_mean, or a symmetric schedule"
    )


def push_uniform(graph: Graph, me: PeerId) -> Neighbourhood:
    """Split each peer's mass evenly over itself and those that hear it: column stochastic W.

    w_ij = 1 / (1 + out-degree of j). Needs push-sum's extra scalar to undo the bias, unless the
    graph is regular. Source: Assran et al. 2019 (SGP), section 3.
    """
    hearers, senders = graph.receivers_of(me), graph.senders_of(me)
    own = 1.0 / (1 + len(hearers))
    degrees = zip(senders, graph.out_degrees(senders), strict=True)
    heard = {j: 1.0 / (1 + degree) for j, degree in degrees}
    return Neighbourhood(me, own, heard, dict.fromkeys(hearers, own))


def neighbour_mean(graph: Graph, me: PeerId) -> Neighbourhood:
    """Average what is heard with one's own, all weights equal: row stochastic W.

    w_ij = 1 / (1 + in-degree of i). The mean over peers drifts towards well-heard peers unless
    the graph is regular. Source: de Vos et al. 2023 (Epidemic Learning), algorithm 1.
    """
    senders, receivers = graph.senders_of(me), graph.receivers_of(me)
    own = 1.0 / (1 + len(senders))
    degrees = zip(receivers, graph.in_degrees(receivers), strict=True)
    hearers = {k: 1.0 / (1 + degree) for k, degree in degrees}
    return Neighbourhood(me, own, dict.fromkeys(senders, own), hearers)


RULES: Mapping[str, MixingRule] = {
    "metropolis": metropolis,
    "push_uniform": push_uniform,
    "neighbour_mean": neighbour_mean,
}


def fast_mix_momentum(lambda2: float) -> float:
    """The b of FastMix, (1 - r) / (1 + r) with r = sqrt(1 - lambda2^2), in [0, 1).

    `lambda2` in [0, 1) is the second largest modulus of an eigenvalue of W.
    Source: Ye et al. 2020 (Mudag), algorithm 2; after Liu, Morse 2011.
    """
    root = math.sqrt(1 - lambda2 * lambda2)
    return (1 - root) / (1 + root)


def mixing_matrix(graph: Graph, rule: MixingRule) -> Matrix:
    """W [n, n] in float64; dense, so for inspection and not for the training loop."""
    matrix = np.zeros((graph.num_peers, graph.num_peers))
    for me in range(graph.num_peers):
        hood = rule(graph, me)
        matrix[me, me] = hood.self_weight
        matrix[me, list(hood.in_weights)] = list(hood.in_weights.values())
    return matrix


def is_doubly_stochastic(matrix: Matrix) -> bool:
    """Whether all rows and columns of W [n, n] sum to 1, so that mixing keeps the mean exactly."""
    return bool(np.allclose(matrix.sum(0), 1.0) and np.allclose(matrix.sum(1), 1.0))


def spectral_gap(weights: Matrix | Iterable[Matrix]) -> float:
    """How fast mixing agrees, in [0, 1]: 0 never (disconnected), 1 at once (exact averaging).

    One matrix [n, n]: 1 - |lambda_2|, with the second largest modulus of an eigenvalue.
    Matrices of consecutive exchanges, first to last: 1 - s^(1/count), where s is the largest
    factor by which all of them together can multiply the deviation from the mean over peers: the
    second singular value of the product when it is doubly stochastic. Gaps of single exchanges
    can all be 0 while the product's is not.
    """
    if isinstance(weights, np.ndarray):
        return _gap_of_one(weights)
    return _gap_of_product(weights)


def _gap_of_one(matrix: Matrix) -> float:
    if len(matrix) == 1:
        return 1.0
    symmetric = np.array_equal(matrix, matrix.T)
    eigenvalues = np.linalg.eigvalsh(matrix) if symmetric else np.linalg.eigvals(matrix)
    return _gap(float(np.sort(np.abs(eigenvalues))[-2]), matrix)


def _gap_of_product(matrices: Iterable[Matrix]) -> float:
    # For row- or column-stochastic W the deviations of a product are the product of deviations;
    # scaling it back to size 1 every time keeps long products from drowning in rounding noise.
    log_size = 0.0
    count = 0
    product: Matrix | None = None
    for matrix in matrices:
        deviation = _deviation(matrix)
        product = deviation if product is None else deviation @ product
        size = float(np.linalg.norm(product))
        if size < _noise(matrix):
            return 1.0
        product = product / size
        log_size += math.log(size)
        count += 1
    if product is None:
        raise ValueError("the spectral gap of a product needs at least one matrix")
    log_factor = log_size + math.log(float(np.linalg.norm(product, 2)))
    return _gap(math.exp(log_factor / count), product)


def _deviation(matrix: Matrix) -> Matrix:
    """(I - J) W (I - J) with J = 1/n everywhere: what W does to deviations from the mean."""
    centred = matrix - matrix.mean(0, keepdims=True)
    deviation: Matrix = centred - centred.mean(1, keepdims=True)
    return deviation


def _noise(matrix: Matrix) -> float:
    return len(matrix) * float(np.finfo(np.float64).eps)


def _gap(factor: float, matrix: Matrix) -> float:
    """1 - factor within [0, 1]; what differs from 0 or 1 by rounding only, reads 0 or 1."""
    gap = min(max(1.0 - factor, 0.0), 1.0)
    return 1.0 if factor < _noise(matrix) else 0.0 if gap < _noise(matrix) else gap
