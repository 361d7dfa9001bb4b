"""Random draws that are equal at every peer, on every machine and with every numpy version.

numpy promises the words of `Philox` for ever, not what `Generator` methods make of them; so all
draws here start from the words and use our own arithmetic. Permutations are whole-number logic;
proportions pass through logarithms, whose last bit may depend on the machine, and are rounded to
whole samples, which such a bit changes once in about 10^12 draws.
"""

from __future__ import annotations

from typing import final

import numpy as np

from p2p_dml.data._dataset import Array

_STREAM = 0x7061727469746E73  # sets these words apart from other users of the run's seed
_WORD = (1 << 64) - 1
_ATTEMPTS = 24


@final
class Draws:
    """A stream of draws from (seed, attempt); each call continues where the last one ended."""

    def __init__(self, seed: int, attempt: int = 0) -> None:
        self._bits = np.random.Philox(key=np.array([(seed ^ _STREAM) & _WORD, attempt], np.uint64))

    def order(self, count: int) -> Array:
        """A random permutation of 0 … count - 1, int64."""
        return np.asarray(self._bits.random_raw(count).argsort(kind="stable"))

    def uniform(self, *shape: int) -> Array:
        """Float64 in (0, 1), of `shape`; never 0, so that a logarithm can be taken."""
        words = self._bits.random_raw(int(np.prod(shape))).reshape(shape)
        return np.asarray(((words >> np.uint64(11)) + 0.5) * 2.0**-53)

    def dirichlet(self, alpha: float, count: int) -> Array:
        """Symmetric Dirichlet proportions [count], summing to 1; any alpha > 0.

        Gamma variates are kept as logarithms, so a tiny alpha gives one peer everything instead
        of 0 / 0. Source: Devroye 1986, ch. XI.4.
        """
        log_gamma = self._log_gamma(alpha, count)
        weights = np.exp(log_gamma - log_gamma.max())
        return np.asarray(weights / weights.sum())

    def _log_gamma(self, alpha: float, count: int) -> Array:
        """Logarithms of `count` Gamma(alpha, 1) variates, by rejection for shape alpha + 1.

        Source: Marsaglia & Tsang 2000, with the boost X_a = X_(a+1) U^(1/a) of its section 6. A
        candidate is accepted with probability > 0.95; all are drawn at once, the first one good
        is taken (that none is good has probability < 1e-31).
        """
        d = alpha + 1 - 1 / 3
        c = 1 / np.sqrt(9 * d)
        u = self.uniform(3, _ATTEMPTS, count)
        normal = np.sqrt(-2 * np.log(u[0])) * np.cos(2 * np.pi * u[1])  # Box & Muller 1958
        v = np.maximum(1 + c * normal, 1e-300) ** 3
        good = np.log(u[2]) < normal**2 / 2 + d - d * v + d * np.log(np.maximum(v, 1e-300))
        first = v[good.argmax(axis=0), np.arange(count)]
        return np.asarray(np.log(d * first) + np.log(self.uniform(count)) / alpha)


def largest_remainder(proportions: Array, total: int) -> Array:
    """Whole numbers close to `proportions` * total that sum to `total` exactly (Hamilton)."""
    exact = proportions * total
    whole = np.floor(exact).astype(np.int64)
    most_cut = np.argsort(whole - exact, kind="stable")
    whole[most_cut[: total - int(whole.sum())]] += 1
    return np.asarray(whole)
