"""The channel table of real networks: widths that the papers print, fingerprints, what is ignored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from specimen import Net, Specimen, conv
from torch import Tensor, nn
from traps import TRAPS
from zoo import ZOO

import models
from hfp import trace
from hfp.channels import ChannelTable
from hfp.cutting.surgery import compact
from hfp.trial.keeps import smallest_cut


def widths(table: ChannelTable) -> list[int]:
    return sorted(group.width for group in table.groups)


def test_vgg_has_a_group_for_each_layer() -> None:
    table = trace(models.build("vgg16_bn"))
    assert [group.width for group in table.groups][:5] == [64, 64, 128, 128, 256]
    assert all(("weight" in group.members[0][0]) and group.members[0][1] == 0 for group in table.groups)


def test_resnet20_has_one_group_for_each_block_and_those_of_the_residual_stream() -> None:
    """Inner layers: 3 stages of 3. The stream: 16 channels through all stages, and what padding adds on either side."""
    table = trace(models.build("resnet20"))
    assert widths(table) == sorted([16] * 3 + [32] * 3 + [64] * 3 + [16, 8, 8, 16, 16])
    assert all(row.reason == "is an output of the network" for row in table.pinned)


def times(table: ChannelTable, name: str, dim: int, channel: int) -> int:
    """How many indices of an axis a channel takes up, alone and as a factor of products."""
    numbers = table.axes[name][dim].tolist()
    own = [(n,) if n < table.channels else table.products[n - table.channels].tolist() for n in numbers]
    return sum(channel in factors for factors in own)


@pytest.mark.parametrize("specimen", [*ZOO.values(), *TRAPS.values()], ids=lambda s: s.name)
def test_a_table_is_consistent(specimen: Specimen) -> None:
    try:
        table = trace(specimen.model(), specimen.inputs())
    except ValueError:
        pytest.skip("refused")
    numbers = torch.cat([group.channels for group in table.groups] or [torch.empty(0, dtype=torch.long)])
    assert sorted(numbers.tolist()) == list(range(table.channels))
    for group in table.groups:
        assert 1 <= group.least <= group.width
        for (name, dim), size in zip(group.members, group.sizes, strict=True):
            assert all(times(table, name, dim, channel) == size for channel in group.channels.tolist())
    for name, tensor in {**dict(specimen.model().named_parameters()), **dict(specimen.model().named_buffers())}.items():
        assert [len(ids) for ids in table.axes[name]] == list(tensor.shape)


def test_the_fingerprint_is_that_of_the_architecture() -> None:
    def table(width: int = 6, bias: bool = True, seed: int = 0, ignore: tuple[str, ...] = ()) -> ChannelTable:
        torch.manual_seed(seed)
        model = nn.Sequential(conv(3, width, bias=bias), nn.ReLU(), conv(width, 4))
        return trace(model, torch.zeros(1, 3, 8, 8), ignore=ignore)

    same = {table().fingerprint(), table(seed=1).fingerprint(), table().fingerprint()}
    other = {table(width=7).fingerprint(), table(bias=False).fingerprint(), table(ignore=("0",)).fingerprint()}
    assert len(same) == 1
    assert len(same | other) == 4


CHAIN = nn.Sequential(conv(3, 6), nn.ReLU(), nn.Sequential(conv(6, 7), nn.BatchNorm2d(7)), nn.ReLU(), conv(7, 4))


@pytest.mark.parametrize(
    "ignore, left",
    [
        ((), [6, 7]),
        (("0",), [7]),
        (("2.0",), [6]),
        (("2",), [6]),
        (("2.*",), [6]),
        ("2.0", [6]),
        (("*",), []),
        ((CHAIN[0],), [7]),
        (CHAIN[2], [6]),
        (("4",), [6, 7]),
        (("0", CHAIN[2]), []),
    ],
    ids=str,
)
def test_ignored_modules_keep_the_channels_that_they_make(ignore: object, left: list[int]) -> None:
    """Made, not read: the layer before an ignored one can still be pruned."""
    assert widths(trace(CHAIN, torch.zeros(1, 3, 8, 8), ignore=ignore)) == left  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong, words", [(("3.conv",), "matches no module"), ((nn.ReLU(),), "matches no module"), ((3,), "glob")]
)
def test_a_wrong_ignore_is_told_what_there_is(wrong: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trace(CHAIN, torch.zeros(1, 3, 8, 8), ignore=wrong)  # type: ignore[arg-type]


def test_a_network_without_modules_is_told_so() -> None:
    with pytest.raises(ValueError, match="matches no module of the network; it has none inside"):
        trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8), ignore="3")


def test_a_module_is_ignored_by_any_of_its_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3))
    model.register_module("again", model[0])
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    assert widths(trace(model, torch.zeros(1, 3, 8, 8))) == [6]
    assert widths(trace(model, torch.zeros(1, 3, 8, 8), ignore="again")) == []


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: nn.DataParallel(CHAIN), "is in DataParallel; pass the plain one, model.module"),
        (lambda: torch.compile(CHAIN, backend="eager"), "is compiled; pass the plain one, model._orig_mod"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), r"lazy modules\); call it once first: model\(example_inputs"),
    ],
)
def test_what_is_no_plain_network_is_told_how_to_get_at_it(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trace(wrong(), torch.zeros(1, 3, 8, 8))


def test_printing_explains_groups_and_pins() -> None:
    def text(name: str) -> str:
        return str(trace(ZOO[name].model(), ZOO[name].inputs()))

    assert "combined with a tensor of fixed size" in text("input_added_to_features")
    assert "add (joins.py:" in text("input_added_to_features")
    assert "a, up" in text("squeeze_and_excite") and "down, c" in text("squeeze_and_excite")


def test_a_table_does_not_depend_on_the_batch() -> None:
    prints = {
        trace(ZOO["flattened"].model(), torch.zeros(b, 3, 8, 8, dtype=torch.float64)).fingerprint() for b in (1, 2, 5)
    }
    assert len(prints) == 1


def test_as_many_heads_as_places_in_each_are_two_groups() -> None:
    """Their channels stand in the same places, and yet one of each has to stay."""

    def run(net: Net, x: Tensor) -> Tensor:
        q, k, v = net.a(x).unflatten(-1, (3, net.heads, -1)).permute(2, 0, 3, 1, 4)
        return net.b(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    model = Net(run, a=nn.Linear(5, 48), b=nn.Linear(16, 2))
    model.heads = 4
    table = trace(model, torch.zeros(2, 3, 5))
    heads = table.attributes["", "heads"].tolist()
    assert [group.width for group in table.groups] == [4, 4]
    assert heads in [group.channels.tolist() for group in table.groups]
    assert compact(model, table, smallest_cut(table)).a.weight.shape == (3, 5)
