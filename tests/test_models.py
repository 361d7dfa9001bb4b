"""Models: shapes, sizes, equal beginnings, parts, causality, and models that do not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from p2p_dml.errors import ConfigError
from p2p_dml.models import MODELS, build_model, parts, redraw

Table = dict[str, object]
IMAGES: list[tuple[Table, tuple[int, ...]]] = [
    ({"name": "softmax"}, (1, 28, 28)),
    ({"name": "softmax"}, (5,)),
    ({"name": "mlp"}, (1, 8, 8)),
    ({"name": "mlp", "hidden": [30, 20]}, (7,)),
    ({"name": "mlp", "hidden": []}, (7,)),
    ({"name": "lenet"}, (1, 28, 28)),
    ({"name": "lenet"}, (3, 32, 32)),
    ({"name": "lenet"}, (1, 8, 8)),
    ({"name": "alexnet_mcepl"}, (3, 32, 32)),
    ({"name": "resnet"}, (3, 32, 32)),
    ({"name": "resnet", "depth": 14, "width": 6}, (1, 9, 9)),
]
TEXTS: list[Table] = [
    {"name": "char_lstm"},
    {"name": "char_lstm", "layers": 2, "dropout": 0.5, "hidden": 16},
    {"name": "char_transformer"},
    {"name": "char_transformer", "width": 16, "heads": 2, "layers": 1, "dropout": 0.1},
]


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("table", "shape"), IMAGES)
def test_image_models(table: Table, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    module = build_model(table, shape, 6, seed=1, dtype=dtype)
    logits = module(torch.ones(2, *shape, dtype=dtype))
    assert (logits.shape, logits.dtype) == ((2, 6), dtype)


@pytest.mark.parametrize("table", TEXTS)
def test_text_models_do_not_see_the_future(table: Table) -> None:
    module = build_model(table, (12,), 9, seed=1, is_tokens=True).eval()
    tokens = torch.arange(24).reshape(2, 12) % 9
    changed = tokens.clone()
    changed[:, 7:] = 0
    for guard in (torch.enable_grad, torch.inference_mode):  # evaluation may take another path
        with guard():
            one, other = module(tokens), module(changed)
        assert one.shape == (2, 12, 9)
        torch.testing.assert_close(one[:, :7], other[:, :7])
        assert not torch.allclose(one[:, 7:], other[:, 7:])


def test_every_model_is_tested() -> None:
    assert {str(t["name"]) for t in TEXTS} | {str(t["name"]) for t, _ in IMAGES} == set(MODELS)


@pytest.mark.parametrize(
    ("table", "shape", "expected"),
    [
        ({"name": "softmax"}, (1, 28, 28), 7_850),
        ({"name": "mlp"}, (1, 28, 28), 785 * 200 + 201 * 10),
        ({"name": "lenet"}, (1, 28, 28), 416 + 12_832 + 1569 * 64 + 650),
    ],
)
def test_sizes(table: Table, shape: tuple[int, ...], expected: int) -> None:
    assert num_parameters(build_model(table, shape, 10, seed=0)) == expected


@pytest.mark.parametrize(
    ("table", "conv", "full"),
    [
        ({}, 1_028_800, 198_528),  # the paper's
        ({"width": 16}, 75 * 16 + 25 * (16 * 32 + 32 * 64), 4 * 64 * 48 + 48 * 10),
    ],
)
def test_alexnet_has_as_many_weights_to_mask(table: Table, conv: int, full: int) -> None:
    module = build_model({"name": "alexnet_mcepl", **table}, (3, 32, 32), 10, seed=0)
    layers = list(module.modules())
    assert sum(m.weight.numel() for m in layers if isinstance(m, nn.Conv2d)) == conv
    assert sum(m.weight.numel() for m in layers if isinstance(m, nn.Linear)) == full
    assert module(torch.randn(4, 3, 32, 32, generator=torch.Generator())).min() >= -1


@pytest.mark.parametrize("table", [{"name": "resnet"}, {"name": "mlp"}])
def test_same_seed_same_weights_and_the_global_generator_stays(table: Table) -> None:
    before = torch.get_rng_state()
    one, two, other = (build_model(table, (1, 9, 9), 4, seed=s) for s in (5, 5, 6))
    wide = build_model(table, (1, 9, 9), 4, seed=5, dtype=torch.float64)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        assert torch.equal(value.double(), wide.state_dict()[name])
    weight = next(iter(one.state_dict()))
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


@pytest.mark.parametrize("tokens", [True, False])
def test_models_come_in_training_mode(tokens: bool) -> None:
    table: Table = {"name": "char_lstm"} if tokens else {"name": "lenet"}
    assert build_model(table, (8,) if tokens else (1, 8, 8), 4, 0, is_tokens=tokens).training


def decision(table: Table, shape: tuple[int, ...], *, is_tokens: bool = False) -> list[str]:
    found = parts(build_model(table, shape, 9, seed=0, is_tokens=is_tokens))
    return [name for name, part in found.items() if part == "decision"]


def test_parts_of_built_in_models() -> None:
    assert decision({"name": "softmax"}, (4,)) == ["1.weight", "1.bias"]
    assert decision({"name": "lenet"}, (1, 8, 8)) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert decision({"name": "char_lstm"}, (5,), is_tokens=True) == ["2.weight", "2.bias"]
    transformer: Table = {"name": "char_transformer", "layers": 1}
    assert decision(transformer, (5,), is_tokens=True) == ["3.weight", "3.bias"]


def test_parts_cover_float_tensors_once_in_state_dict_order() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    assert parts(module) == {
        "0.weight": "decision",
        "0.bias": "decision",
        "1.weight": "representation",
        "1.bias": "representation",
        "1.running_mean": "representation",
        "1.running_var": "representation",
        "2.bias": "decision",
    }
    assert parts(nn.Linear(2, 2)) == {"weight": "decision", "bias": "decision"}


OWN = """
from torch import nn

def net(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, width), nn.Linear(width, 2))

def wrong() -> str:
    return "model"

class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()

    def forward(self, x):
        return x, x
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models_module.py").write_text(OWN, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own_module")
def test_own_factory_takes_the_other_keys() -> None:
    module = build_model({"name": "own_models_module:net", "width": 5}, (4,), 2, seed=0)
    assert num_parameters(module) == 8 + 25 + 12
    assert module.state_dict()["0.num_batches_tracked"] == 0


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("table", "shape", "message"),
    [
        ({"name": "lenett"}, (1, 8, 8), r"model\.name: .*did you mean 'lenet'"),
        ({"name": "mlp", "hiden": [8]}, (4,), r"hiden: unknown key; .* 'hidden'\? valid: hidden$"),
        ({"name": "softmax", "classes": 3}, (4,), "model.classes: comes from the data set"),
        ({"name": "mlp", "hidden": [0]}, (4,), "hidden: expected at least 1, found 0"),
        ({"name": "mlp", "hidden": "200"}, (4,), r"model\.hidden"),
        ({"name": "mlp", "hidden": [1 << 50]}, (4,), r"^model: cannot be built: .*memory.*$"),
        ({"name": "mlp", "hidden": [10**20]}, (4,), r"^model: cannot be built: .*Overflow.*$"),
        ({"name": "lenet"}, (4,), r"images of shape \[C, H, W\], found samples \[4\]"),
        ({"name": "alexnet_mcepl"}, (1, 8, 8), "too small"),
        ({"name": "resnet", "depth": 9}, (1, 8, 8), "depth: expected 6n . 2"),
        ({"name": "resnet", "width": 0}, (1, 8, 8), "width: expected at least 1"),
        ({"name": "alexnet_mcepl", "width": 0}, (3, 32, 32), "width: expected at least 1"),
        ({"name": "char_lstm"}, (1, 8), r"tokens of shape \[L\]"),
        ({"name": "char_lstm", "dropout": 0.5}, (8,), "set layers = 2"),
        ({"name": "char_lstm"}, (8,), r"cannot take a sample of shape \[8\] and type"),
        ({"name": "char_transformer", "heads": 3}, (8,), r"multiple of heads \(3\)"),
        ({"name": "own_models_module:net"}, (5,), "cannot take a sample"),
        ({"name": "own_models_module:net"}, (4,), r"for 7 classes .* \[1, 7\].*got \[1, 2\]"),
        ({"name": "own_models_module:Pair"}, (4,), "got tuple"),
        ({"name": "own_models_module:wrong"}, (4,), "must return a torch.nn.Module, found str"),
    ],
)
def test_models_that_do_not_fit(table: Table, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(table, shape, 7, seed=0)


# --- initial weights ---------------------------------------------------------------------------

BOUNDS = {"kaiming": 6, "signed_constant": 2}


def weights(table: Table, dtype: torch.dtype = torch.float32, seed: int = 3) -> dict[str, Tensor]:
    module = build_model(table, (3, 32, 32), 10, seed=seed, dtype=dtype)
    return dict(module.state_dict())


@pytest.mark.parametrize("init", BOUNDS)
def test_weights_are_drawn_within_their_bound_and_biases_stay(init: str) -> None:
    plain, drawn = weights({"name": "lenet"}), weights({"name": "lenet", "init": init})
    fans = {"0.0.weight": 75, "0.3.weight": 400, "1.weight": 2048, "3.weight": 64}
    assert fans.keys() == {name for name, x in plain.items() if x.dim() > 1}
    for name, x in drawn.items():
        if name not in fans:
            assert torch.equal(x, plain[name])
            continue
        bound = (BOUNDS[init] / fans[name]) ** 0.5
        assert float(x.abs().max()) == pytest.approx(bound, rel=0.02)
        assert not torch.equal(x, plain[name])


def test_kaiming_is_uniform_with_the_variance_of_its_name() -> None:
    x = weights({"name": "lenet", "init": "kaiming"}, torch.float64)["1.weight"].flatten()
    share = (x / (6 / 2048) ** 0.5 + 1) / 2
    assert float(x.var()) == pytest.approx(2 / 2048, rel=0.02)
    spread = torch.histc(share, 16, 0.0, 1.0) / len(share)
    assert torch.allclose(spread, torch.full((16,), 1 / 16, dtype=torch.float64), atol=2e-3)


def test_signs_are_even_and_of_one_size() -> None:
    x = weights({"name": "lenet", "init": "signed_constant"}, torch.float64)["1.weight"]
    size = (2 / 2048) ** 0.5
    assert set(x.flatten().tolist()) == {-size, size}
    assert abs(int((x > 0).sum()) - x.numel() / 2) < 5 * (x.numel() / 4) ** 0.5


@pytest.mark.parametrize("init", BOUNDS)
def test_init_follows_from_the_seed_alone(init: str) -> None:
    table: Table = {"name": "resnet", "init": init}
    torch.manual_seed(9)
    one = weights(table)
    torch.manual_seed(10)
    other, next_seed = weights(table), weights(table, seed=4)
    wide = weights(table, torch.float64)
    for name, x in one.items():
        assert torch.equal(x, other[name])
        torch.testing.assert_close(x.double(), wide[name], rtol=1e-6, atol=0.0)
    assert not torch.equal(one["0.weight"], next_seed["0.weight"])


def test_the_words_of_an_init_are_written_down() -> None:
    """By hand from Philox: sign and place of the first two weights."""
    module = nn.Linear(2, 1)
    bias = module.bias.clone()
    words = np.random.Philox(key=[5 ^ 0x696E697469616C21, 0]).random_raw(2)
    redraw(module, "signed_constant", 5)
    assert module.weight[0].tolist() == [1.0 if int(word) >> 63 else -1.0 for word in words]
    redraw(module, "kaiming", 5)
    expected = [(2 * (int(word) >> 11) * 2.0**-53 - 1) * 3**0.5 for word in words]
    assert module.weight[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(module.bias, bias)


def test_tied_weights_are_drawn_once_and_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    redraw(module, "signed_constant", 0)
    assert module[2].weight is module[0].weight
    assert torch.equal(module.get_parameter("1.weight"), torch.ones(3))


@pytest.mark.parametrize("init", ["kamming", 3, True])
def test_an_unknown_init_is_refused(init: object) -> None:
    with pytest.raises(ConfigError, match=r"model\.init: unknown name"):
        build_model({"name": "softmax", "init": init}, (4,), 2, seed=0)
