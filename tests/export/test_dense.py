"""Files of a small model that are torn, foreign or do not fit together; the round trip of each
kind of layer is in `test_nets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.export import load, save
from p2p_dml.export._dense import LAYERS_FILE, WEIGHTS_FILE

LINEAR = '{"kind": "Linear", "in_features": 3, "out_features": 2, "bias": true}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model, saved."""
    save(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), tmp_path)
    return tmp_path


def test_the_description_can_be_read(folder: Path) -> None:
    text = (folder / LAYERS_FILE).read_text(encoding="utf-8")
    assert text == f'{{"layers": [\n{LINEAR},\n{{"kind": "ReLU"}}\n]}}\n'


def test_loading_draws_nothing(folder: Path) -> None:
    before = torch.random.get_rng_state()
    load(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loaded_model_can_be_trained_on(folder: Path) -> None:
    model = load(str(folder))
    torch.autograd.backward(model(torch.ones(1, 3)).sum())
    assert all(x.requires_grad and x.grad is not None for x in model.parameters())


BAD: Mapping[str, tuple[str, str]] = {
    "no JSON": ("{", "cannot be read"),
    "no layers": ("{}", "a list of tables"),
    "a list": ("[]", "a list of tables"),
    "layers of words": ('{"layers": ["Linear"]}', "a list of tables"),
    "unknown kind": (
        '{"layers": [{"kind": "Lienar"}]}',
        r"layers\[0\]\.kind.*did you mean 'Linear'",
    ),
    "no kind": ('{"layers": [{}]}', r"layers\[0\]\.kind"),
    "unknown option": (
        LINEAR.replace('"bias"', '"bais"').join(('{"layers": [', "]}")),
        r"layers\[0\]\.bais.*did you mean 'bias'",
    ),
    "wrong type": (
        LINEAR.replace("3", '"3"').join(('{"layers": [', "]}")),
        r"layers\[0\]\.in_features",
    ),
    "negative": (LINEAR.replace("3", "-3").join(('{"layers": [', "]}")), r"layers\[0\]"),
    "windows of nothing": (
        '{"layers": [{"kind": "WindowNorm", "size": 2, "alpha": 1.0, "beta": 1.0, '
        '"inputs": [0, 2], "outputs": [1]}]}',
        "outputs",
    ),
    "other sizes": (LINEAR.replace("3", "4").join(('{"layers": [', "]}")), "does not fit"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_a_description_of_something_else(folder: Path, text: str, says: str) -> None:
    (folder / LAYERS_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_weights_of_something_else(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    for wrong in ({}, {"0.weight": weights["0.weight"]}, {n: x.half() for n, x in weights.items()}):
        save_file(wrong, folder / WEIGHTS_FILE)
        with pytest.raises(ConfigError, match="does not fit"):
            load(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(ConfigError, match=WEIGHTS_FILE):
        load(folder)


def test_no_export_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="p2p-dml export"):
        load(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=LAYERS_FILE):
        save(nn.Sequential(nn.ReLU()), tmp_path / "file")
