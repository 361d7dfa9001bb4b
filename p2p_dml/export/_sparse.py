"""Tensors with many zeros in one file: the values that are not 0, and a bit for each place.

Of a tensor NAME the file holds `values/NAME`, in the order of the places, and `bitmap/NAME`, uint8,
place 0 in the lowest bit of the first byte; the shape is in the metadata. Tensors that would not
become smaller are there as they are, as `whole/NAME`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.export._files import read_tensors, write_tensors
from p2p_dml.tables import check
from p2p_dml.tensors import join, part
from p2p_dml.types import Tensors

SPARSE_FILE = "sparse.safetensors"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_sparse(state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write a state dict for `load_sparse`, which gives back every bit, also of -0.0 and NaN.

    -0.0 is a value like any other. StorageError if the file cannot be written.
    """
    values: Tensors = {}
    bitmap: Tensors = {}
    for name, x in state.items():
        found, bits = _packed(x)
        if found.nbytes + bits.nbytes < x.nbytes:
            values[name], bitmap[name] = found, bits
    whole = {name: x for name, x in state.items() if name not in values}
    shapes = {name: list(state[name].shape) for name in values}
    metadata = {"shapes": json.dumps(shapes), "order": json.dumps(list(state))}
    tensors = join(values=values, bitmap=bitmap, whole=whole)
    write_tensors(Path(folder, SPARSE_FILE), tensors, metadata)


def load_sparse(folder: str | Path) -> Tensors:
    """Read the state dict of the whole model that `p2p-dml export` wrote to `folder`.

    Raises ConfigError naming the file and what is wrong in it.
    """
    path = Path(folder, SPARSE_FILE)
    tensors, metadata = read_tensors(path)
    shapes = _read(dict[str, tuple[int, ...]], metadata, "shapes", path)
    order = _read(list[str], metadata, "order", path)
    values, bitmap, state = (part(tensors, channel) for channel in ("values", "bitmap", "whole"))
    if not shapes.keys() == values.keys() == bitmap.keys():
        raise ConfigError(f"{path}: values, bitmaps and shapes are not of the same tensors")
    for name, shape in shapes.items():
        state[name] = _unpacked(values[name], bitmap[name], shape, f"{path}: {name!r}")
    if sorted(order) != sorted(state):
        raise ConfigError(f"{path}: expected tensors {sorted(order)}, found {sorted(state)}")
    return {name: state[name] for name in order}


def _packed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Values and bitmap of a tensor."""
    flat = x.detach().cpu().contiguous().view(-1)
    is_value = flat.view(_BITS[flat.element_size()]) != 0
    bits = np.packbits(is_value.numpy(), bitorder="little")
    return flat[is_value], torch.from_numpy(bits)


def _unpacked(values: Tensor, bitmap: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    """The tensor of `_packed`; every size is checked before memory is taken."""
    count = math.prod(shape)
    num_bytes = (count + 7) // 8
    if bitmap.dtype != torch.uint8 or bitmap.shape != (num_bytes,) or min(shape, default=0) < 0:
        raise ConfigError(
            f"{where}: for shape {list(shape)} expected a bitmap of uint8 [{num_bytes}], found "
            f"{bitmap.dtype} {list(bitmap.shape)}"
        )
    is_value = torch.from_numpy(np.unpackbits(bitmap.numpy(), bitorder="little")).bool()
    if values.shape != (int(is_value.sum()),) or is_value[count:].any():
        raise ConfigError(
            f"{where}: the bitmap has {int(is_value.sum())} ones among {len(is_value)} bits, and "
            f"there are values {list(values.shape)} for {count} places"
        )
    flat = torch.zeros(count, dtype=values.dtype)
    flat[is_value[:count]] = values
    return flat.view(shape)


def _read(annotation: Any, metadata: Mapping[str, str], key: str, path: Path) -> Any:
    """One entry of the metadata, as the annotated type."""
    try:
        entry = json.loads(metadata[key])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: metadata {key!r} are missing or no JSON") from error
    return check(annotation, entry, f"{path}: {key}")
