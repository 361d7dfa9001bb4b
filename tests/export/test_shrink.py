"""What goes and what stays of a small model, by hand; layers and models that are refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from p2p_dml.errors import ConfigError
from p2p_dml.export import shrink
from p2p_dml.export._layers import describe
from p2p_dml.models import build_model

FLAT, IMAGE = (4,), (1, 6, 6)


def _filled(model: nn.Module, **tensors: Sequence[object] | Tensor) -> nn.Module:
    """The model in float64, all 1 but for some tensors; `_1_bias` stands for `1.bias`."""
    model.double()
    with torch.no_grad():
        for name, x in model.named_parameters():
            value = tensors.get("_" + name.replace(".", "_"), 1.0)
            x.copy_(torch.as_tensor(value, dtype=torch.float64).expand_as(x))
    return model


def _sizes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in model.parameters()]


def _same(model: nn.Module, shape: tuple[int, ...]) -> nn.Sequential:
    """The small model, whose outputs are those of `model`."""
    small = shrink(model, shape)
    x = torch.randn((3, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(small(x), model.eval()(x), rtol=0.0, atol=1e-12)
    return small


def test_an_empty_neuron_goes_into_the_next_bias() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    weight = [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]
    head = [[1.0, 5.0, 2.0], [2.0, -3.0, 1.0]]
    model = _filled(net, _0_weight=weight, _0_bias=[0.5, 2.0, -1.0], _2_weight=head)
    small = _same(model, (2,))
    assert {name: x.tolist() for name, x in small.state_dict().items()} == {
        "0.weight": [[1.0, 2.0], [3.0, 4.0]],
        "0.bias": [0.5, -1.0],
        "2.weight": [[1.0, 2.0], [2.0, 1.0]],
        "2.bias": [1.0 + 5.0 * 2.0, 1.0 - 3.0 * 2.0],  # relu(2) for each
    }


def test_a_neuron_that_nobody_reads_goes_and_those_that_only_it_reads() -> None:
    net = nn.Sequential(
        nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh()
    )
    middle = [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [2.0, 0.0, 1.0]]  # neuron 1 reads neuron 1
    head = [[1.0, 0.0, 1.0], [2.0, 0.0, 3.0]]  # neuron 1 is not read
    small = _same(_filled(net, _2_weight=middle, _4_weight=head), FLAT)
    assert _sizes(small) == [(2, 4), (2,), (2, 2), (2,), (2, 2), (2,)]


def test_a_bias_is_made_where_one_is_needed() -> None:
    net = nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Linear(2, 3, bias=False))
    small = _same(_filled(net, _0_weight=[[1.0] * 4, [0.0] * 4], _0_bias=[0.0, 0.0]), FLAT)
    assert small.state_dict()["2.bias"].tolist() == [0.5, 0.5, 0.5]  # sigmoid(0)
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3, bias=False))
    small = _same(_filled(net, _0_weight=[[1.0] * 4, [0.0] * 4], _0_bias=[1.0, -1.0]), FLAT)
    assert small.state_dict().keys() == {"0.weight", "0.bias", "2.weight"}  # relu(-1) = 0


@pytest.mark.parametrize(
    ("padding", "mode", "bias", "left"),
    [
        (0, "zeros", 0.7, 1),
        (1, "zeros", 0.7, 2),  # less of it is seen at the border
        (1, "zeros", -0.7, 1),  # relu makes it 0
        (1, "replicate", 0.7, 1),
    ],
    ids=["no padding", "padding", "padding of 0", "padding of itself"],
)
def test_a_constant_before_a_convolution(
    padding: int, mode: Literal["zeros", "replicate"], bias: float, left: int
) -> None:
    second = nn.Conv2d(2, 1, 3, padding=padding, padding_mode=mode)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), second)
    first = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    small = _same(_filled(net, _0_weight=first, _0_bias=[0.2, bias]), IMAGE)
    assert len(small.state_dict()["0.weight"]) == left


def test_constants_that_differ_in_place_go_before_a_linear_layer() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.Conv2d(2, 2, 3, padding=1),  # of a constant: smaller at the border
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 1),
    )
    second = torch.ones(2, 2, 3, 3)
    second[1, 0] = 0.0  # filter 1 reads the constant channel only
    first = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    head = torch.arange(1.0, 9.0).view(1, 8)
    small = _same(_filled(net, _0_weight=first, _1_weight=second, _4_weight=head), IMAGE)
    state = small.state_dict()
    assert len(state["1.weight"]) == 1
    assert state["4.weight"].tolist() == [[1.0, 2.0, 3.0, 4.0]]
    # Corners of a map of 4 x 4 see 2 x 2 of the kernel, sides 2 x 3, the middle 3 x 3.
    assert state["4.bias"].item() == pytest.approx(1.0 + (5 + 6 + 7 + 8) * (9 + 1.0))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_windows_keep_their_places(size: int) -> None:
    """Channels 0, 2 and 5 are left of six; 5 is not read but stands in windows."""
    norm = nn.LocalResponseNorm(size, alpha=0.8, beta=0.6, k=1.1)
    net = nn.Sequential(nn.Conv2d(1, 6, 1), norm, nn.Conv2d(6, 1, 1))
    left = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.0, 3.0])
    read = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 0.0])
    model = _filled(
        net,
        _0_weight=left.view(6, 1, 1, 1),
        _0_bias=torch.zeros(6),
        _2_weight=read.view(1, 6, 1, 1),
    )
    small = _same(model, IMAGE)
    is_near = size // 2 + (size - 1) // 2 >= 3 and (size - 1) // 2 >= 3  # of 2, to its right
    assert len(small.state_dict()["0.weight"]) == (3 if is_near else 2)


def test_a_constant_in_a_window_goes_into_the_offset() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.LocalResponseNorm(3, 0.9, 0.5, 2.0), nn.Conv2d(3, 1, 1)
    )
    left, read = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0])
    model = _filled(
        net,
        _0_weight=left.view(3, 1, 1, 1),
        _0_bias=[0.0, 2.0, 0.0],
        _2_weight=read.view(1, 3, 1, 1),
    )
    small = _same(model, IMAGE)
    assert len(small.state_dict()["0.weight"]) == 2
    assert small.state_dict()["1.offset"].tolist() == pytest.approx([2.0 + 0.9 / 3 * 4.0] * 2)


def test_groups_stay_whole() -> None:
    """Group 1 of three is empty, of group 2 one channel is read and the other a constant."""
    net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 1, 1))
    left = torch.tensor([1.0, 2.0, 0.0, 0.0, 3.0, 0.0])
    read = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    model = _filled(net, _0_weight=left.view(6, 1, 1, 1), _2_weight=read.view(1, 6, 1, 1))
    small = _same(model, IMAGE)
    layers = [describe(layer) for layer in small]
    assert (layers[1]["num_groups"], layers[1]["num_channels"]) == (2, 4)
    assert layers[2] == {"kind": "Pick", "channels": (0, 1, 2)}
    assert layers[3]["in_channels"] == 3


def test_a_model_of_zeros_has_one_channel_everywhere() -> None:
    model = build_model({"name": "alexnet_mcepl"}, (3, 32, 32), 10, 1, torch.float64)
    with torch.no_grad():
        for x in model.parameters():
            if x.dim() >= 2:
                x.zero_()
    sizes = _sizes(_same(model, (3, 32, 32)))
    assert sizes == [(1, 3, 5, 5), (1, 1, 5, 5), (1, 1, 5, 5), (1, 4), (1,), (10, 1), (10,)]


@pytest.mark.parametrize(
    ("name", "emptied", "outputs"),
    [
        ("softmax", [], [10]),
        ("mlp", ["1"], [100, 10]),
        ("lenet", ["0.0", "0.3", "1"], [8, 16, 32, 10]),
        ("alexnet_mcepl", ["0.0", "0.4", "0.8", "1"], [32, 64, 128, 96, 10]),
    ],
)
def test_built_in_models(name: str, emptied: list[str], outputs: list[int]) -> None:
    """Half of the outputs of some layers have neither weights nor a bias."""
    model = build_model({"name": name}, (3, 32, 32), 10, 1, torch.float64)
    with torch.no_grad():
        for key, x in model.named_parameters():
            if key.rpartition(".")[0] in emptied:
                x[::2] = 0.0
    sizes = _sizes(_same(model, (3, 32, 32)))
    assert [size[0] for size in sizes if len(size) >= 2] == outputs


def test_the_model_itself_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(3, 2))
    before = copy.deepcopy(model.state_dict())
    small = shrink(model, FLAT)
    assert model.training
    assert not small.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [type(layer) for layer in small] == [nn.Linear, nn.ReLU, nn.Linear]
    with torch.no_grad():
        for x in small.parameters():
            x.zero_()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


class _Own(nn.Linear):
    """A layer that torch does not know."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).square()


REFUSED: Mapping[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "another layer": (
        nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.LSTM(4, 2)),
        FLAT,
        r"layer 1, LSTM\(4, 2\), is not supported",
    ),
    "inside": (
        nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Softmax(1))),
        FLAT,
        r"layer 1\.1, Softmax",
    ),
    "alone": (nn.Embedding(4, 2), FLAT, "layer 0, Embedding"),
    "a subclass": (nn.Sequential(_Own(4, 4)), FLAT, "layer 0, _Own"),
    "groups": (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), (4, 6, 6), "layer 0, Conv2d"),
    "part of a flatten": (nn.Sequential(nn.Flatten(2)), IMAGE, "layer 0, Flatten"),
    "linear on maps": (nn.Sequential(nn.Linear(6, 2)), IMAGE, r"shape \[1, 6, 6\].* 1 axes"),
    "pool of vectors": (nn.Sequential(nn.MaxPool2d(2)), FLAT, r"shape \[4\].* 3 axes"),
    "another shape": (nn.Sequential(nn.Linear(5, 2)), FLAT, "cannot take an activation"),
}


@pytest.mark.parametrize(("model", "shape", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named(model: nn.Module, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        shrink(model, shape)


def test_a_residual_network_is_refused_in_one_line() -> None:
    model = build_model({"name": "resnet"}, (3, 32, 32), 10, 1)
    with pytest.raises(ConfigError, match=r"layer 3, _ResidualBlock, is not supported") as caught:
        shrink(model, (3, 32, 32))
    assert "\n" not in str(caught.value)
