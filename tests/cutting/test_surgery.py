"""Compaction: what it keeps besides the function, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from specimen import conv
from torch import Tensor, nn
from zoo import ZOO

import hfp
import models
from hfp import trace
from hfp.channels import ChannelTable
from hfp.cutting import chunks
from hfp.cutting.surgery import compact, sliced

X = torch.zeros(1, 3, 8, 8)


def halved(model: nn.Module, inputs: object = X) -> nn.Module:
    table = trace(model, inputs)
    return compact(model, table, half(table))


def half(table: ChannelTable) -> Tensor:
    """Every second channel of each group, the first one among them."""
    keep = torch.zeros(table.channels, dtype=torch.bool)
    for group in table.groups:
        keep[group.channels[::2]] = True
    return keep


def test_modules_say_their_new_sizes() -> None:
    small = halved(
        nn.Sequential(
            conv(3, 8),
            nn.BatchNorm2d(8),
            nn.PReLU(8),
            conv(8, 8, groups=8),
            nn.ConvTranspose2d(8, 6, 2),
            nn.Flatten(),
            nn.Linear(6 * 81, 10),
            nn.BatchNorm1d(10, affine=False),
            nn.Linear(10, 4),
        )
    )
    convolution, norm, prelu, depthwise, transposed, _, linear, flat_norm, last = small
    assert (convolution.in_channels, convolution.out_channels) == (3, 4)
    assert (norm.num_features, prelu.num_parameters, flat_norm.num_features) == (4, 4, 5)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 4, 4)
    assert (transposed.in_channels, transposed.out_channels) == (4, 3)
    assert (linear.in_features, linear.out_features, last.in_features) == (3 * 81, 5, 5)


def test_an_embedding_says_its_new_size() -> None:
    small = halved(nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4)), torch.zeros(2, 3, dtype=torch.long))
    assert (small[0].num_embeddings, small[0].embedding_dim) == (10, 4)


def test_bags_and_bilinear_forms_say_their_new_sizes() -> None:
    class Form(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.form, self.last = nn.EmbeddingBag(10, 8), nn.Bilinear(8, 8, 6), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.bag(x)
            return self.last(self.form(h, h))

    small = halved(Form(), torch.zeros(2, 3, dtype=torch.long))
    assert small.bag.embedding_dim == 4
    assert (small.form.in1_features, small.form.in2_features, small.form.out_features) == (4, 4, 3)


def test_the_class_is_the_models_own() -> None:
    model = models.build("resnet20")
    small = halved(model, None)
    assert type(small) is type(model) and [type(m) for m in small.modules()] == [type(m) for m in model.modules()]


def test_flags_dtype_and_layout_of_tensors_stay() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 4)).to(
        torch.bfloat16, memory_format=torch.channels_last
    )
    model[0].weight.requires_grad_(False)
    model.train()[1].eval()
    small = halved(model, X.bfloat16())
    assert not small[0].weight.requires_grad and small[2].weight.requires_grad
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert [m.training for m in small] == [True, False, True]
    assert all(p.is_leaf and p.grad is None for p in small.parameters())


def test_the_layout_of_volumes_stays() -> None:
    layers = nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 3)
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d)
    small = halved(model, torch.zeros(1, 3, 6, 6, 6))
    assert small[2].weight.shape == (4, 4, 3, 3, 3)
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_recurrent_weights_are_laid_out_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(x)[0])

    laid: list[list[tuple[int, ...]]] = []
    monkeypatch.setattr(
        nn.LSTM, "flatten_parameters", lambda rnn: laid.append([tuple(w.shape) for w in rnn._flat_weights])
    )
    small = halved(Last(), torch.zeros(2, 3, 5))
    assert laid[-1] == [(16, 5), (16, 4), (16,), (16,)] == [tuple(w.shape) for w in small.rnn.parameters()]


def test_tied_weights_stay_tied() -> None:
    small = halved(ZOO["tied_weights"].model(), ZOO["tied_weights"].inputs())
    assert small.a.weight is small.b.weight
    small = halved(ZOO["module_called_twice"].model(), ZOO["module_called_twice"].inputs())
    assert small.b.weight.shape[:2] == (3, 3)


class Calling(nn.Module):
    """Reads its embedding, or a norm, through a function that it holds, or that stands in for a forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embedding, self.mix, self.norm = nn.Embedding(20, 12), nn.Linear(12, 12), nn.LayerNorm(12)
        forward, mix = self.norm.forward, self.mix
        if how == "lambda":
            self.read = lambda x: x @ self.embedding.weight.t()
        elif how == "hook":
            self.norm.register_forward_hook(lambda module, args, out: out * mix.bias.mean().exp())
        else:
            self.norm.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]

    def read(self, x: Tensor) -> Tensor:
        return x @ self.embedding.weight.t()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        return self.read(self.norm(x + self.mix(x)))


@pytest.mark.parametrize("how", ["lambda", "hook", "forward"])
def test_functions_of_the_compact_network_are_its_own(how: str) -> None:
    """What the dense model holds may change, and nothing happens to the compact one."""
    model, x = Calling(how), torch.arange(20)[None]
    small = hfp.wrap(model, x, target_params=0.7, verify=True).compact()
    before = small(x)
    assert small.embedding.weight.shape[1] < 12  # type: ignore[union-attr, index]
    for parameter in model.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(small(x), before)
    small(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_buffers_stay_persistent_or_not() -> None:
    specimen = ZOO["buffer_that_no_checkpoint_holds"]
    small = halved(specimen.model(), specimen.inputs())
    assert small.shift.shape == (1, 3, 1, 1)
    assert "shift" not in small.state_dict() and "shift" in dict(small.named_buffers())


def test_nothing_is_shared_with_the_dense_model() -> None:
    """Training the compact network leaves the dense one alone, also where nothing was cut."""
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 4))
    small = halved(model)
    addresses = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert addresses.isdisjoint(t.data_ptr() for t in (*small.parameters(), *small.buffers()))


def test_the_compact_network_trains_and_can_be_cut_again() -> None:
    small = halved(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), conv(8, 4)))
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad.shape == p.shape for p in small.parameters())
    assert halved(small)[0].out_channels == 2


def test_a_model_that_keeps_an_activation() -> None:
    """After a training step such a model holds a tensor with a graph, which deepcopy alone refuses."""
    model = ZOO["chain"].model(torch.float32)
    model.last = model(X)
    assert model.last.grad_fn is not None
    assert halved(model).a.out_channels == 3
    assert model.last.grad_fn is not None


@pytest.mark.parametrize("seed", range(40))
def test_tensors_are_sliced_part_by_part(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any number of dims, any of them cut, in parts of any size."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda most: int(torch.randint(1, most + 1, (1,), generator=generator))  # noqa: E731
    monkeypatch.setattr(chunks, "CACHED", draw(40))
    tensor = torch.randn([draw(7) for _ in range(draw(4))], generator=generator, dtype=torch.float64)
    lives = [(torch.rand(n, generator=generator) < 0.6).nonzero().flatten() for n in tensor.shape]
    left: list[Tensor | None] = [None if draw(3) == 1 else indices for indices in lives]
    expected = tensor
    for dim, indices in enumerate(left):
        expected = expected if indices is None else expected.index_select(dim, indices)
    found = sliced(tensor, left)
    assert torch.equal(found, expected) and found.data_ptr() != tensor.data_ptr()


def test_parts_are_what_the_cache_holds() -> None:
    assert chunks.rows_at_hand(torch.empty(4096, 1024), 0) == chunks.CACHED // 1024
    assert chunks.rows_at_hand(torch.empty(3, 10**6), 0) == 1
    assert chunks.rows_at_hand(torch.empty(0, 5), 0) == 1
    assert chunks.rows_at_hand(torch.empty(4096, 1024, device="meta"), 0) == 4096, "of no processor"


def test_keeping_everything_is_a_copy() -> None:
    model = ZOO["squeeze_and_excite"].model()
    table = trace(model, ZOO["squeeze_and_excite"].inputs())
    same = compact(model, table, torch.ones(table.channels, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize(
    "keep, words",
    [
        (torch.ones(5, dtype=torch.bool), "6 channels"),
        (torch.ones(6), "bool"),
        (torch.ones(1, 6, dtype=torch.bool), "6 channels"),
        (torch.zeros(6, dtype=torch.bool), "a.weight"),
    ],
)
def test_a_wrong_keep_vector(keep: Tensor, words: str) -> None:
    model = ZOO["chain"].model()
    table = trace(model, ZOO["chain"].inputs())
    with pytest.raises(ValueError, match=words):
        compact(model, table, keep)
