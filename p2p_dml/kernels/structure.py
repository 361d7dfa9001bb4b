"""What is zero as a whole: outputs (filters of a convolution, neurons of a linear layer) and masks.

The outputs of a weight tensor are the slices of its first axis.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def kept_per_output(x: Tensor) -> Tensor:
    """Number of non-zero entries in each output of a weight or mask [O, …], as int64 [O]."""
    return x.detach().flatten(1).count_nonzero(1)


def structured_sparsity(params: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of outputs that are all zero, by name, of each tensor of 2 or more dimensions.

    Tensors without any output have share 0.
    """
    return {name: _share_of_zeros(kept_per_output(x)) for name, x in params.items() if x.dim() >= 2}


def prune_outputs(mask: Tensor, least: int) -> Tensor:
    """A copy of a mask [O, …] in which outputs with `least` or fewer ones are all zero.

    Tian et al. 2025 (MCE-PL) prune filters and neurons with at most 20 kept weights; with `least`
    0 the mask stays as it is.
    """
    is_kept = kept_per_output(mask) > least
    return mask * is_kept.view(-1, *(1 for _ in mask.shape[1:])).to(mask.dtype)


def _share_of_zeros(counts: Tensor) -> float:
    return float((counts == 0).sum()) / max(1, len(counts))
