"""`p2p-dml export` on runs made for it: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from p2p_dml import checkpoint, cli, config, data
from p2p_dml.assemble import model_of
from p2p_dml.errors import ConfigError, ExitCode, StorageError
from p2p_dml.export import load, load_sparse
from p2p_dml.export import peers as exports
from p2p_dml.export._figures import Small
from p2p_dml.export.peers import export_peer
from p2p_dml.kernels.structure import kept_per_output
from p2p_dml.launchers import simulated
from p2p_dml.tensors import part

RUN: Mapping[str, object] = {
    "name": "to-export",
    "peers": 2,
    "rounds": 2,
    "strategy": "dpsgd",
    "links": "complete",
    "data": {"name": "digits", "test_samples": 50},
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"steps": 1},
    "evaluate_every": 0,
}
MINE = """
from torch import nn

def network():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

def train(model, round):
    return 0.5
"""


def _run(folder: Path, **changes: object) -> Path:
    """A finished run, in `folder`/out; its user's modules are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config.parse({**RUN, **changes}, folder)
    simulated.simulate(settings, folder / "out", lambda path, started: lambda: None)
    return folder / "out"


def _mask(run: Path, peer: int, round: int) -> None:
    """Mask the first layer of a checkpoint, its neurons 0 to 3 as a whole; some zeros are -0.0."""
    saved = checkpoint.load(run / checkpoint.checkpoint_file(peer, round))
    weight = saved.tensors["model/1.weight"]
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7] *= 0.0
    weight[:4] *= 0.0
    checkpoint.save(run, saved)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoints of peer 1 are masked in round 1."""
    folder = _run(tmp_path_factory.mktemp("masked"), checkpoint_every=1)
    _mask(folder, 1, 1)
    return folder


def _call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["export", *arguments], catch_exceptions=False)


def _state(run: Path, peer: int, round: int) -> dict[str, Tensor]:
    return part(checkpoint.load(run / checkpoint.checkpoint_file(peer, round)).tensors, "model")


def test_both_forms_are_the_checkpoint(run: Path, tmp_path: Path) -> None:
    exported = export_peer(run, 1, 1, tmp_path)
    state = _state(run, 1, 1)
    sparse = load_sparse(tmp_path)
    assert list(sparse) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert all(torch.equal(x, state[name]) for name, x in sparse.items())

    whole = model_of(config.load(run / "run.toml"), data.load({"name": "digits"}))
    whole.load_state_dict(sparse)
    small = load(tmp_path)
    x = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(small(x), whole(x), rtol=0.0, atol=1e-5)
    assert [tuple(p.shape) for p in small.parameters()] == [(12, 64), (12,), (10, 12), (10,)]
    assert exported.small is not None
    assert exported.small.is_equal


def test_figures_by_hand(run: Path, tmp_path: Path) -> None:
    exported = export_peer(run, 1, 1, tmp_path)
    figures: dict[str, Any] = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))
    assert figures["run"] == "to-export"
    assert (figures["peer"], figures["round"]) == (1, 1)
    assert figures["shape"] == [1, 8, 8]
    assert len(figures["mean"]) == len(figures["std"]) == 1
    assert figures["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert figures["dense_bytes"] == 4 * figures["parameters"]
    state = _state(run, 1, 1)
    assert figures["nonzero"] == sum(int(x.count_nonzero()) for x in state.values())
    values = int(state["1.weight"].count_nonzero())  # the rest would not become smaller
    assert figures["sparse_bytes"] == (tmp_path / "sparse.safetensors").stat().st_size
    assert figures["sparse_bytes"] - (4 * (values + 16 + 170) + 64 * 16 // 8) in range(700)
    assert figures["empty_outputs"] == {"1.weight": 0.25, "3.weight": 0.0}
    assert int((kept_per_output(state["1.weight"]) == 0).sum()) == 4
    small = figures["small"]
    assert small["multiply_adds_whole"] == 64 * 16 + 16 * 10
    assert small["multiply_adds"] == 64 * 12 + 12 * 10
    assert small["parameters"] == 64 * 12 + 12 + 12 * 10 + 10
    assert small["samples"] == 50
    assert small["file_bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert exported.small is not None
    assert exported.small.largest_difference == small["largest_difference"] < 1e-5


def test_the_command_says_where_and_how_much(run: Path) -> None:
    result = _call(str(run), "--peer", "1", "--round", "1")
    assert result.exit_code == ExitCode.DONE
    folder = run / "export" / "peer-001" / "round-000001"
    assert f"export: {folder}" in result.output
    for text in ("1,210", "910", "75.2 %", "multiply-adds", "over 50 test samples"):
        assert text in result.output
    assert {path.name for path in folder.iterdir()} == {
        "export.json",
        "model.json",
        "model.safetensors",
        "sparse.safetensors",
    }


def test_what_the_page_shows_works(run: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "export.md"
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (printed,) = re.findall(r"^export: (.+)$", text, re.M)
    folder = str(export_peer(run, 0, None, tmp_path).folder)
    shown = {printed: folder, "1, 3, 32, 32": "1, 1, 8, 8"}
    for there, here in shown.items():
        assert there in block
        block = block.replace(there, here)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["logits"].shape == (1, 10)
    assert names["state"].keys() == _state(run, 0, 2).keys()


def test_every_figure_is_on_the_page(run: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    export_peer(run, 0, None, tmp_path)
    figures = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))
    assert all(f"`{name}`" in page for name in [*figures, *figures["small"]])


def test_the_last_checkpoint_is_taken_and_an_export_replaced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export_peer(run, 1, 1, out).round == 1
    before = (out / "model.safetensors").read_bytes()
    assert export_peer(run, 1, None, out).round == 2
    assert (out / "model.safetensors").read_bytes() != before
    assert export_peer(run, 0, None, out).small is not None


def test_a_network_that_is_no_chain_has_values_and_bitmap_only(tmp_path: Path) -> None:
    model = {"name": "resnet", "width": 2}
    run = _run(tmp_path, model=model, train={"steps": 1, "batch_size": 8}, rounds=1)
    result = _call(str(run), "--peer", "0", "--out", str(tmp_path / "export"))
    assert result.exit_code == ExitCode.DONE
    assert "no small dense model: layer 3, _ResidualBlock" in " ".join(result.output.split())
    state = _state(run, 0, 1)
    assert all(torch.equal(x, state[n]) for n, x in load_sparse(tmp_path / "export").items())
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"export.json", "sparse.safetensors"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a model and a training of the user's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_to_export.py").write_text(MINE, encoding="utf-8")
    path = "mine_to_export:"
    return _run(tmp_path, model=path + "network", train=path + "train", rounds=1, data="digits")


def test_a_training_of_ones_own_has_values_and_bitmap_only(own: Path) -> None:
    exported = export_peer(own, 0)
    assert exported.small is None
    assert exported.why_not is not None
    assert "function of your own" in exported.why_not
    assert load_sparse(exported.folder).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_model_of_ones_own_that_is_gone(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (own / "run.toml").read_text(encoding="utf-8").replace("mine_to_export", "gone_module")
    (own / "run.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="no module named 'gone_module'"):
        export_peer(own, 0, None, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_wrong_export_is_no_success(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "largest_difference", lambda *_: (2e-5, 1.0))
    assert _call(str(run), "--peer", "0").exit_code == ExitCode.FAILED


@pytest.mark.parametrize(
    ("difference", "output", "is_equal"),
    [(1e-5, 0.1, True), (2e-5, 0.1, False), (9e-5, 10.0, True), (float("nan"), 1.0, False)],
)
def test_what_counts_as_equal(difference: float, output: float, is_equal: bool) -> None:
    small = Small(
        parameters=1,
        multiply_adds=1,
        multiply_adds_whole=1,
        file_bytes=1,
        time_ratio=1.0,
        largest_difference=difference,
        largest_output=output,
        samples=1,
    )
    assert small.is_equal is is_equal


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--peer", "0"], "nowhere: not a run folder: looked for run.toml"),
        (["RUN", "--peer", "2"], "--peer 2: out of range: the run has peers 0 to 1"),
        (["RUN", "--peer", "-1"], "--peer -1: out of range"),
        (["RUN", "--peer", "0", "--round", "7"], "--round 7: .* of rounds 1, 2;"),
        (["RUN", "--peer", "0", "--out", "RUN"], "'checkpoints', which is no part of an export"),
        (["RUN", "--peer", "0", "--out", "RUN/run.toml"], "run.toml: is a file"),
    ],
)
def test_bad_arguments_are_named(run: Path, arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _call(*(each.replace("RUN", str(run)) for each in arguments))


def test_a_run_without_checkpoints(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "run.toml", tmp_path)
    with pytest.raises(ConfigError, match=r"no checkpoint of peer 1.*checkpoint_every"):
        export_peer(tmp_path, 1)


def test_a_checkpoint_of_another_model(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    text = (run / "run.toml").read_text(encoding="utf-8").replace("16", "17")
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"does not fit the model of run.toml: .*\[17\]"):
        export_peer(tmp_path, 1)


def test_a_torn_checkpoint(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "run.toml", tmp_path)
    path = tmp_path / checkpoint.checkpoint_file(0, 3)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    with pytest.raises(ConfigError, match="not a checkpoint"):
        export_peer(tmp_path, 0)


def test_a_place_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot .*file"):
        export_peer(run, 0, None, tmp_path / "file" / "below")
