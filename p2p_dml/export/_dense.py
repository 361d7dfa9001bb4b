"""A small model in two files: a description of its layers, and their weights. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from p2p_dml.errors import ConfigError
from p2p_dml.export._files import read_tensors, write_tensors
from p2p_dml.export._layers import describe, rebuild
from p2p_dml.files import write_whole
from p2p_dml.tensors import mismatch

LAYERS_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"


def save(model: nn.Sequential, folder: str | Path) -> None:
    """Write a chain that `shrink` made, for `load`. StorageError if it cannot be written."""
    layers = ",\n".join(json.dumps(describe(layer)) for layer in model)  # a line each
    write_whole(Path(folder, LAYERS_FILE), f'{{"layers": [\n{layers}\n]}}\n'.encode())
    write_tensors(Path(folder, WEIGHTS_FILE), model.state_dict(), {})


def load(folder: str | Path) -> nn.Sequential:
    """Read the small model that `p2p-dml export` wrote to `folder`, on the CPU, to be used.

    It is in evaluation mode. Raises ConfigError naming the file and what is wrong in it.
    """
    path, weights_path = Path(folder, LAYERS_FILE), Path(folder, WEIGHTS_FILE)
    model = nn.Sequential(*_read_layers(path))
    weights, _ = read_tensors(weights_path)
    if all(x.dtype == torch.float64 for x in weights.values()):
        model.double()
    if difference := mismatch(weights, model.state_dict()):
        raise ConfigError(f"{weights_path}: does not fit {path.name}: {difference}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _read_layers(path: Path) -> list[nn.Module]:
    """The layers that `path` describes, without weights."""
    try:
        description: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}; expected a file that `p2p-dml export` wrote"
        ) from error
    layers = description.get("layers") if isinstance(description, dict) else None
    if not isinstance(layers, list) or not all(isinstance(each, dict) for each in layers):
        raise ConfigError(f"{path}: expected a table with a list of tables, `layers`")
    return [rebuild(each, f"{path}: layers[{place}]") for place, each in enumerate(layers)]
