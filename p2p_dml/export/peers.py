"""From a run folder to one peer's model without its zeros: what `p2p-dml export` does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from p2p_dml import checkpoint, config
from p2p_dml.assemble import load_data, model_of
from p2p_dml.checkpoint import Checkpoint, checkpoint_file
from p2p_dml.config import RunConfig
from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError
from p2p_dml.export._cost import largest_difference, multiply_adds, num_parameters, time_ratio
from p2p_dml.export._dense import LAYERS_FILE, WEIGHTS_FILE, save
from p2p_dml.export._figures import Exported, Small, table
from p2p_dml.export._files import clear
from p2p_dml.export._shrink import shrink
from p2p_dml.export._sparse import SPARSE_FILE, save_sparse
from p2p_dml.files import write_whole
from p2p_dml.kernels.structure import structured_sparsity
from p2p_dml.learners import test_samples
from p2p_dml.tensors import mismatch, num_bytes, num_elements, part
from p2p_dml.types import PeerId

__all__ = ["FIGURES_FILE", "Exported", "Small", "export_peer", "table"]

FIGURES_FILE = "export.json"
_FILES = frozenset({FIGURES_FILE, LAYERS_FILE, WEIGHTS_FILE, SPARSE_FILE})
_SAMPLES = 200


def export_peer(
    run: Path, peer: PeerId, round: int | None = None, out: Path | None = None
) -> Exported:
    """Write a peer's model of a round (None: its last checkpoint) to `out`, in both forms.

    `out`: None means `export/` of the run folder and the checkpoint's name. An earlier export there
    is replaced. Raises ConfigError if there is no such run, peer or round, if `out` holds something
    else, or if data or model cannot be had; StorageError if it cannot be written.
    """
    settings = _settings(run)
    path = _checkpoint_path(run, settings, peer, round)
    saved = checkpoint.load(path)
    dataset, _ = load_data(settings)
    model = _trained(model_of(settings, dataset), saved, path)
    folder = out or run / "export" / path.parent.name / path.stem
    clear(folder, _FILES)
    exported = _export(model, dataset, folder, settings.name, saved)
    figures = {key: value for key, value in asdict(exported).items() if key != "folder"}
    write_whole(folder / FIGURES_FILE, (json.dumps(figures, indent=2) + "\n").encode())
    return exported


def _export(
    model: nn.Module, dataset: Dataset | None, folder: Path, run: str, saved: Checkpoint
) -> Exported:
    """Write both forms of a trained model; what they have come to."""
    state = model.state_dict()
    numbers = {name: x for name, x in state.items() if x.is_floating_point()}
    save_sparse(state, folder)
    small = _small(model, dataset, folder)
    return Exported(
        folder=folder,
        run=run,
        peer=saved.peer,
        round=saved.round,
        version=saved.version,
        shape=dataset.shape if dataset else None,
        mean=dataset.mean if dataset else None,
        std=dataset.std if dataset else None,
        parameters=num_elements(numbers),
        nonzero=sum(int(x.count_nonzero()) for x in numbers.values()),
        dense_bytes=num_bytes(state),
        sparse_bytes=(folder / SPARSE_FILE).stat().st_size,
        empty_outputs=structured_sparsity(numbers),
        small=small if isinstance(small, Small) else None,
        why_not=None if isinstance(small, Small) else small,
    )


def _settings(run: Path) -> RunConfig:
    if not (run / "run.toml").is_file():
        raise ConfigError(
            f"{run}: not a run folder: looked for run.toml; expected the folder that `p2p-dml run` "
            "or `p2p-dml simulate` wrote"
        )
    return config.load(run / "run.toml")


def _checkpoint_path(run: Path, settings: RunConfig, peer: PeerId, round: int | None) -> Path:
    if not 0 <= peer < settings.peers:
        raise ConfigError(
            f"--peer {peer}: out of range: the run has peers 0 to {settings.peers - 1}"
        )
    folder = (run / checkpoint_file(peer, 0)).parent
    files = {int(f.stem.partition("-")[2]): f for f in folder.glob("round-[0-9]*.safetensors")}
    if not files:
        raise ConfigError(
            f"{run}: there is no checkpoint of peer {peer}: looked for round-*.safetensors in "
            f"{folder}; a peer saves one at its end, and others if the run file sets "
            "checkpoint_every"
        )
    chosen = max(files) if round is None else round
    if chosen not in files:
        raise ConfigError(
            f"--round {round}: peer {peer} has checkpoints of rounds "
            f"{', '.join(map(str, sorted(files)))}; without --round the last one is taken"
        )
    return files[chosen]


def _trained(model: nn.Module, saved: Checkpoint, path: Path) -> nn.Module:
    """The model with a checkpoint's weights, in evaluation mode."""
    state = part(saved.tensors, "model")
    if difference := mismatch(state, model.state_dict()):
        raise ConfigError(f"{path}: does not fit the model of run.toml: {difference}")
    # A weight that was masked may be -0.0: adding 0 makes it 0.0, which needs no value in a file.
    model.load_state_dict(
        {name: x + 0 if x.is_floating_point() else x for name, x in state.items()}
    )
    return model.eval()


def _small(model: nn.Module, dataset: Dataset | None, folder: Path) -> Small | str:
    """Write the small dense model and compare it; a sentence if there can be none."""
    if dataset is None:
        return "the run trains with a function of your own, so the samples' shape is not known"
    try:
        small = shrink(model, dataset.shape)
    except ConfigError as error:
        return str(error)
    save(small, folder)
    tests = test_samples(dataset, torch.device("cpu"), next(model.parameters()).dtype)
    x, _ = tests.batch(np.arange(min(_SAMPLES, len(tests))))
    difference, output = largest_difference(model, small, x)
    return Small(
        parameters=num_parameters(small),
        multiply_adds=multiply_adds(small, x[:1]),
        multiply_adds_whole=multiply_adds(model, x[:1]),
        file_bytes=(folder / WEIGHTS_FILE).stat().st_size,
        time_ratio=time_ratio(model, small, x),
        largest_difference=difference,
        largest_output=output,
        samples=len(x),
    )
