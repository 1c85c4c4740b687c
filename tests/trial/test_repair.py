"""What is done where the cut network does not follow: attributes, ties, and pins that name the line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from promises import Gated, check_cut, random_keep
from specimen import Net
from torch import Tensor, nn

from hfp import trace
from hfp.channels import ChannelTable
from hfp.cutting.surgery import compact

X = torch.randn(2, 5, 8, dtype=torch.float64)


class Attention(nn.Module):
    """3 heads of 4, in any of the ways in which a module may say so."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 36), nn.Linear(12, 8)
        for name, value in sizes.items():
            setattr(self, name, value)

    def shape(self, batch: int, tokens: int) -> tuple[int, ...]:
        return (batch, tokens, 3, self.heads, -1)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(self.shape(batch, tokens)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TwoNumbers(Attention):
    def shape(self, batch: int, tokens: int) -> tuple[int, ...]:
        return (batch, tokens, 3, self.heads, self.width)


class InAList(Attention):
    def shape(self, batch: int, tokens: int) -> tuple[int, ...]:
        return (batch, tokens, 3, *self.sizes)


class Literal(Attention):
    def shape(self, batch: int, tokens: int) -> tuple[int, ...]:
        return (batch, tokens, 3, 3, -1)


def traced(attention: nn.Module) -> tuple[nn.Module, ChannelTable]:
    torch.manual_seed(0)
    model = nn.Sequential(attention, nn.Linear(8, 2)).double().eval()
    return model, trace(model, X)


def check(model: nn.Module, table: ChannelTable) -> None:
    generator = torch.Generator().manual_seed(0)
    for density in (0.0, 0.4, 0.7):
        check_cut(model, table, random_keep(table, density, generator), ((X,), {}), 1e-10)


def widths(table: ChannelTable, name: str, dim: int) -> list[int]:
    return sorted(group.width for group in table.groups if (name, dim) in group.members)


@pytest.mark.parametrize(
    "build, attributes",
    [
        (lambda: Attention(heads=3), {"heads"}),
        (lambda: Attention(heads=3, other=3, more=4), {"heads"}),
        (lambda: TwoNumbers(heads=3, width=4), {"heads", "width"}),
        (lambda: InAList(sizes=[3, 4]), {"sizes.0", "sizes.1"}),
        (lambda: InAList(sizes=(3, 4)), {"sizes.0", "sizes.1"}),
    ],
)
def test_a_number_that_a_module_keeps_is_changed(build: Any, attributes: set[str]) -> None:
    model, table = traced(build())
    assert {name for _, name in table.attributes} >= attributes
    assert {3, 4} <= set(widths(table, "0.qkv.weight", 0))
    check(model, table)
    least = torch.zeros(table.channels, dtype=torch.bool)
    for group in table.groups:
        least[group.channels[: group.least]] = True
    small = compact(model, table, least)[0]
    for name, dense in (("heads", 3), ("width", 4)):
        assert not hasattr(small, name) or getattr(small, name) == 1
        assert not hasattr(small, name) or getattr(model[0], name) == dense
    if hasattr(small, "sizes"):
        assert list(small.sizes) == [1, 1] and type(small.sizes) is type(model[0].sizes)
        assert list(model[0].sizes) == [3, 4]


def test_a_literal_stays_and_names_its_line() -> None:
    """Heads are written into the code; their widths follow."""
    model, table = traced(Literal())
    assert 3 not in widths(table, "0.qkv.weight", 0) and 4 in widths(table, "0.qkv.weight", 0)
    check(model, table)

    def run(net: Net, x: Tensor) -> Tensor:
        return net.b(net.a(x).reshape(-1, 6))

    model = Net(run, a=nn.Linear(8, 6), b=nn.Linear(6, 2)).double().eval()
    (pinned,) = [row for row in trace(model, X).pinned if row.tensor == "a.weight"]
    assert pinned.place.line == f"test_repair.py:{run.__code__.co_firstlineno + 1}"
    assert "does not follow" in pinned.reason and pinned.count == 6


def test_a_reshape_to_the_width_of_the_input_ties_the_two() -> None:
    """`c` is that of the input: heads times places must be as many as there are, so the inner width is the outer."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        batch, tokens, width = h.shape
        return net.c(h + net.b(h).transpose(1, 2).reshape(batch, width, tokens).transpose(1, 2))

    def mixed(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(net.b(h).reshape(h.shape).relu())

    def alike(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.c(net.b(h).flatten(0, 1).reshape_as(h))

    for forward in (run, mixed, alike):
        model = Net(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2)).double().eval()
        table = trace(model, X)
        (group,) = table.groups
        assert {("a.weight", 0), ("b.weight", 0), ("b.weight", 1), ("c.weight", 1)} <= set(group.members)
        check(model, table)


VALUES: dict[str, Any] = {
    "twice as wide": (lambda width: 2 * width, 16, [3, 8]),
    "half as wide": (lambda width: width // 2, 4, [3, 4]),
    "wider by two": (lambda width: width + 2, 10, [3]),
}


@pytest.mark.parametrize("how", VALUES)
def test_values_of_attention_that_are_wider_than_its_keys(how: str) -> None:
    """A width that is a multiple of another is cut likewise; where it cannot be, both stay, but heads go."""
    of_values, wide, groups = VALUES[how]

    def run(net: Net, x: Tensor) -> Tensor:
        q, k = (each(x).view(*x.shape[:2], net.heads, net.width).transpose(1, 2) for each in (net.q, net.k))
        v = net.v(x).view(*x.shape[:2], net.heads, of_values(net.width)).transpose(1, 2)
        return net.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    layers = {name: nn.Linear(8, 3 * width) for name, width in (("q", 8), ("k", 8), ("v", wide))}
    net = Net(run, **layers, out=nn.Linear(3 * wide, 2))
    net.heads, net.width = 3, 8
    model = net.double().eval()
    table = trace(model, X)
    assert sorted(group.width for group in table.groups) == groups
    check(model, table)


def parts(net: Net, first: Tensor, rest: Tensor) -> Tensor:
    return net.b(first) + net.c(rest)


def sliced(net: Net, h: Tensor, first: slice, rest: slice) -> Tensor:
    return parts(net, h[..., first], h[..., rest])


SLICES: dict[str, Any] = {
    "an attribute": lambda net, h: sliced(net, h, slice(net.n), slice(net.n, None)),
    "what is reckoned from one": lambda net, h: sliced(net, h, slice(net.n * 1), slice(net.n + 0, None)),
    "an attribute, from the end": lambda net, h: sliced(net, h, slice(-net.k), slice(-net.k, None)),
    "two attributes": lambda net, h: sliced(net, h, slice(net.n), slice(net.n, net.both)),
    "narrow": lambda net, h: parts(net, h.narrow(-1, 0, net.n), h.narrow(-1, net.n, net.k)),
    "tensor_split": lambda net, h: parts(net, *h.tensor_split([net.n], dim=-1)),
    "tensor_split by what layers say": lambda net, h: parts(net, *torch.tensor_split(h, (net.b.in_features,), -1)),
    "what layers say": lambda net, h: sliced(net, h, slice(net.b.in_features), slice(-net.c.in_features, None)),
}


@pytest.mark.parametrize("bounds, first", [*((bounds, 5) for bounds in SLICES), ("an attribute", 4)])
def test_bounds_of_slices_that_attributes_say(bounds: str, first: int) -> None:
    """Each part is cut for itself, also one that is just a third of the whole."""
    torch.manual_seed(0)
    layers = {"a": nn.Linear(8, first + 8), "b": nn.Linear(first, 2), "c": nn.Linear(8, 2)}
    net = Net(lambda net, x: SLICES[bounds](net, net.a(x).relu()), **layers)
    net.n, net.k, net.both = first, 8, first + 8
    model = net.double().eval()
    table = trace(model, X)
    assert sorted(group.width for group in table.groups) == [first, 8]
    check(model, table)


@pytest.mark.parametrize("first", [2, 4])
def test_slices_of_what_has_no_channels(first: int) -> None:
    """Of the input, or of an output of which nothing can be cut, by any function that takes slices."""

    def run(net: Net, x: Tensor) -> Tensor:
        split = x.tensor_split([net.n], -1)[0] + x.tensor_split(8 // net.n, -1)[0]
        h = net.a(x.narrow(-1, 0, net.n) + x[..., : net.n] + split)
        h = torch.reshape(input=torch.narrow(input=net.b(h.relu()), dim=1, start=0, length=4), shape=(len(x), 4, 3))
        return h.narrow(1, 0, 3).narrow(dim=1, start=0, length=2)

    net = Net(run, a=nn.Linear(first, 6), b=nn.Linear(6, 3))
    net.n = first
    model = net.double().eval()
    table = trace(model, X)
    assert [group.width for group in table.groups] == [6]
    check(model, table)


def test_bounds_of_slices_that_are_written_into_the_code_stay() -> None:
    layers = {"a": nn.Linear(8, 13), "b": nn.Linear(5, 2), "c": nn.Linear(8, 2)}
    model = Net(lambda net, x: sliced(net, net.a(x).relu(), slice(5), slice(5, None)), **layers).double().eval()
    table = trace(model, X)
    assert [group.width for group in table.groups] == [8]
    assert any("is cut at fixed positions" in row.reason and row.count == 5 for row in table.pinned)
    check(model, table)


class Cross(nn.Module):
    """Every head is as large as a share of the stream, which is as wide as all heads together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape

        def each_head(t: Tensor) -> Tensor:
            return t.reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = each_head(self.q(x[:, :1])), each_head(self.k(x)), each_head(self.v(x))
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(batch, 1, width))


@pytest.mark.parametrize("heads, size, blocks", [(3, 8, 1), (4, 6, 1), (4, 6, 2), (2, 16, 2), (3, 16, 3)])
def test_a_share_of_a_width_follows_what_stands_on_an_axis_of_its_own_later_on(
    heads: int, size: int, blocks: int
) -> None:
    torch.manual_seed(0)
    every = [Cross(heads * size, heads) for _ in range(blocks)]
    model = nn.Sequential(nn.Linear(8, heads * size), *every, nn.Linear(heads * size, 2)).double().eval()
    table = trace(model, X)
    assert sorted(group.width for group in table.groups) == sorted([heads, size])
    check(model, table)


@pytest.mark.parametrize("how", ["the stream", "an attribute"])
def test_a_first_state_is_as_wide_as_what_it_meets(how: str) -> None:
    """`zeros(batch, c)` may have the c of another tensor, which is then cut alike, or that of an attribute."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).relu()
        k = net.b(h)
        state = torch.full((len(x), h.shape[-1] if how == "the stream" else net.wide), -1e3, dtype=x.dtype)
        for token in k.unbind(1):
            state = torch.maximum(state - 0.1, token)
        return net.d(h.mean(1)) + net.c(state)

    torch.manual_seed(0)
    model = Net(run, a=nn.Linear(8, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2), d=nn.Linear(6, 2)).double().eval()
    model.wide = 6
    table = trace(model, X)
    assert [group.width for group in table.groups] == ([6] if how == "the stream" else [6, 6])
    check(model, table)


def test_a_repair_that_does_not_help_is_taken_back() -> None:
    """`other` is 6 too, but does not say the width; nor do the attributes of modules around."""
    model = Net(lambda net, x: net.b(net.a(x).reshape(-1, 6)), a=nn.Linear(8, 6), b=nn.Linear(6, 2)).double().eval()
    model.other = 6
    table = trace(model, X)
    assert not table.groups and not table.attributes
    assert model.other == 6


@pytest.mark.parametrize("size", [6, 7])
def test_a_guess_that_ends_the_run_too_early_is_taken_back(size: int) -> None:
    """The size of the image is that of the layer, which no attribute says: changed, it stops the forward at once."""

    def run(net: Net, x: Tensor) -> Tensor:
        if x.shape[-1] != net.size:
            raise ValueError("an image of another size")
        return net.c(net.check(net.b(net.a(x).relu())))

    def checked(net: Net, h: Tensor) -> Tensor:
        if h.shape[1] != 6:
            raise ValueError("not 6 channels")
        return h

    a, b, c = (nn.Conv1d(i, o, 1) for i, o in ((4, 5), (5, 6), (6, 2)))
    model = Net(run, a=a, b=b, c=c, check=Net(checked), size=size).double().eval()
    inputs = torch.randn(2, 4, size, dtype=torch.float64)
    table = trace(model, inputs)
    assert [(group.width, group.members[0]) for group in table.groups] == [(5, ("a.weight", 0))]
    assert {row.tensor for row in table.pinned if "not 6 channels" in row.reason} == {"b.weight"}
    check_cut(model, table, random_keep(table, 0.4, torch.Generator().manual_seed(0)), ((inputs,), {}), 1e-10)


def test_of_several_guesses_only_the_one_that_ends_the_run_is_taken_back() -> None:
    """Two modules add 0, as long as an attribute follows the width; one of them is the size of the image, too."""

    def run(net: Net, x: Tensor) -> Tensor:
        if x.shape[-1] != net.second.size:
            raise ValueError("an image of another size")
        return net.c(net.second(net.b(net.first(net.a(x).relu()))))

    def nothing(attribute: str) -> Net:
        return Net(lambda net, h: h + (int(str(h.shape[1])) - getattr(net, attribute)))

    a, b, c = (nn.Conv1d(i, o, 1) for i, o in ((4, 6), (6, 6), (6, 2)))
    model = Net(run, a=a, b=b, c=c, first=nothing("width"), second=nothing("size")).double().eval()
    model.first.width = model.second.size = 6
    inputs = torch.randn(2, 4, 6, dtype=torch.float64)
    table = trace(model, inputs)
    assert [group.members[0] for group in table.groups] == [("a.weight", 0)]
    assert set(table.attributes) == {("first", "width")}
    check_cut(model, table, random_keep(table, 0.4, torch.Generator().manual_seed(0)), ((inputs,), {}), 1e-10)


def test_which_attribute_is_asked_for_is_found_although_all_are_of_one_size() -> None:
    """4 heads of 4, 4 of which are said to be something else."""
    attention = InAList(sizes=[4, 4], heads=4, width=4)
    attention.qkv, attention.out = nn.Linear(8, 48), nn.Linear(16, 8)
    model, table = traced(attention)
    assert {name for _, name in table.attributes} == {"sizes.0", "sizes.1"}
    heads, places = (table.attributes["0", f"sizes.{n}"] for n in (0, 1))
    assert not set(heads.tolist()) & set(places.tolist())
    check(model, table)


class Scaled(TwoNumbers):
    """The output depends on an attribute that the shapes depend on as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.width**0.5 * (2 * self.heads)


class Shifted(TwoNumbers):
    """As `Scaled`, but no factor for the gates makes up for it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.width


def test_a_factor_that_is_a_power_of_a_width_follows() -> None:
    model, table = traced(Scaled(heads=3, width=4))
    assert {name for _, name in table.attributes} == {"heads", "width"}
    powers = {(o.power, len(o.channels)) for o in table.operands if o.how == "power"}
    assert powers == {(-0.5, 4), (1.0, 3)}
    assert {o.training for o in table.operands if o.how == "power"} == {True, False}
    check(model, table)


def test_which_width_a_factor_is_a_power_of_is_found_where_several_are_cut_to_the_same_share() -> None:
    """All widths are cut to a half first: 8 outer channels, 4 heads, 2 places in each."""
    for attribute in ("heads", "width"):

        class OneFactor(TwoNumbers):
            def forward(self, x: Tensor, attribute: str = attribute) -> Tensor:
                return super().forward(x) * getattr(self, attribute) ** -0.5

        attention = OneFactor(heads=4, width=2)
        attention.qkv, attention.out = nn.Linear(8, 24), nn.Linear(8, 8)
        model, table = traced(attention)
        assert {(o.power, len(o.channels)) for o in table.operands if o.how == "power"} == {
            (-0.5, getattr(attention, attribute))
        }
        check(model, table)


def test_an_attribute_that_stands_in_arithmetic_stays_and_what_else_can_be_cut_is() -> None:
    model, table = traced(Shifted(heads=3, width=4))
    assert {name for _, name in table.attributes} == {"heads"}
    assert widths(table, "0.qkv.weight", 0) == [3]
    check(model, table)


@pytest.mark.parametrize("at_end", [True, False])
def test_the_parts_of_a_split_may_have_sizes_of_their_own(at_end: bool) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        sizes = [net.large, net.small] if at_end else [net.small, net.large]
        one, other = net.a(x).split(sizes, dim=-1)
        return net.c(one) + net.d(other)

    one, other = (5, 3) if at_end else (3, 5)
    parts = {"a": nn.Linear(8, 8), "c": nn.Linear(one, 2), "d": nn.Linear(other, 2)}
    model = Net(run, **parts).double().eval()
    model.large, model.small = 5, 3
    table = trace(model, X)
    assert {name for _, name in table.attributes} == {"large", "small"}
    assert widths(table, "a.weight", 0) == [3, 5]
    check(model, table)


def test_code_that_fails_pins_what_it_has_read() -> None:
    """An assertion about one width leaves the others free, and names its line."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        assert h.shape[-1] == 6
        return net.d(net.c(net.b(h)))

    parts = {"a": nn.Linear(8, 6), "b": nn.Linear(6, 7), "c": nn.Linear(7, 5), "d": nn.Linear(5, 2)}
    model = Net(run, **parts).double().eval()
    table = trace(model, X)
    assert sorted(group.width for group in table.groups) == [5, 7]
    (pinned,) = [row for row in table.pinned if row.tensor == "a.weight"]
    assert pinned.place.line == f"test_repair.py:{run.__code__.co_firstlineno + 2}"
    check(model, table)


def test_small_groups_of_one_width_are_not_mistaken_for_each_other() -> None:
    """As many heads as places in each, and code that needs the number of heads for both."""

    class Swapped(TwoNumbers):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out * torch.ones(self.heads, dtype=x.dtype).sum() / self.heads

    attention = Swapped(heads=3, width=3)
    attention.qkv, attention.out = nn.Linear(8, 27), nn.Linear(9, 8)
    model, table = traced(attention)
    generator = torch.Generator().manual_seed(0)
    for density in (0.2, 0.3, 0.5, 0.7):
        for _ in range(4):
            check_cut(model, table, random_keep(table, density, generator), ((X,), {}), 1e-10)


class Annotated(nn.Module):
    """Attention whose views leave the tokens to what is left (-1), behind an embedding that is scaled by its width."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.width, self.heads, self.of_each = width, heads, width // heads
        self.first, self.out, self.last = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * math.sqrt(self.width)
        q, k, v = (layer(x).view(len(x), -1, self.heads, self.of_each).transpose(1, 2) for layer in self.qkv)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1)
        merged = (weights @ v).transpose(1, 2).contiguous().view(len(x), -1, self.heads * self.of_each)
        return self.last(x + self.out(merged))


@pytest.mark.parametrize("tokens", [4, 5, 6, 8, 12, 24])
def test_a_view_that_leaves_tokens_to_what_is_left_is_followed_for_any_number_of_them(tokens: int) -> None:
    """Where it divides what is left, the view of the cut network does not fail, and only what comes next shows it."""
    model = Annotated().double().eval()
    table = trace(model, X[:, :1].repeat(1, tokens, 1))
    assert sorted(group.width for group in table.groups) == [4, 6, 24]
    for density in (0.0, 0.4, 0.7):
        keep = random_keep(table, density, torch.Generator().manual_seed(0))
        check_cut(model, table, keep, ((torch.randn(2, tokens, 8, dtype=torch.float64),), {}), 1e-10)


class TimeFirst(nn.Module):
    """Tokens in the first axis, and the heads of all examples in one."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.of_each = heads, width // heads
        self.first, self.out, self.last = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        tokens, batch, _ = x.shape
        q, k, v = (layer(x).view(tokens, batch * self.heads, self.of_each).transpose(0, 1) for layer in self.qkv)
        mixed = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return self.last(x + self.out(mixed.transpose(0, 1).reshape(tokens, batch, -1)))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_heads_of_all_examples_in_one_axis_are_heads(batch: int) -> None:
    torch.manual_seed(0)
    model = TimeFirst().double().eval()
    table = trace(model, torch.randn(4, batch, 8, dtype=torch.float64))
    assert sorted(group.width for group in table.groups) == [3, 4, 12]
    for more, density in enumerate((0.0, 0.4, 0.7)):
        keep = random_keep(table, density, torch.Generator().manual_seed(0))
        check_cut(model, table, keep, ((torch.randn(4, batch, 8, dtype=torch.float64),), {}), 1e-10)
        x, small = torch.randn(6, batch + more, 8, dtype=torch.float64), compact(model, table, keep)
        torch.testing.assert_close(Gated(model, table, keep)(x), small(x))


class Block(nn.Module):
    """Attention that reads the width of a head off its input; with one projection, or with three."""

    def __init__(self, width: int, heads: int, parts: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
        self.given = nn.ModuleList(nn.Linear(width, 3 * width // parts) for _ in range(parts))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y, h = self.norm(x), self.num_heads
        if len(self.given) == 1:
            q, k, v = self.given[0](y).reshape(b, n, 3, h, c // h).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (give(y).view(b, n, h, c // h).transpose(1, 2) for give in self.given)
        scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return x + self.mix((scores @ v).transpose(1, 2).reshape(b, n, c))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "width, heads, depth", [(16, 2, 3), (16, 8, 1), (16, 8, 3), (24, 2, 4), (24, 12, 3), (48, 6, 2)]
)
def test_widths_of_heads_that_are_read_off_the_input(width: int, heads: int, depth: int, parts: int) -> None:
    """Whatever divides what: a width of a head may be a multiple of their number by chance, or as many as are left."""
    blocks = [Block(width, heads, parts) for _ in range(depth)]
    table = trace(nn.Sequential(nn.Linear(5, width), *blocks, nn.Linear(width, 4)), torch.randn(2, 9, 5))
    assert sorted(group.width for group in table.groups) == sorted([heads, width // heads])
