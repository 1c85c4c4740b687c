"""Recurrent layers, one-dimensional and three-dimensional ones, gated units and mixers. See `specimen.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from specimen import IMAGE, Net, conv, parameter, registry
from torch import Tensor, nn

RECURRENT, specimen = registry()

ROWS = ((2, 5, 7),)
INTO = "a rnn.weight_ih_l0/1"
"""The features that come into a recurrent layer."""
HIDDEN = "rnn.weight_ih_l0/0 rnn.weight_hh_l0/0 rnn.weight_hh_l0/1 rnn.bias_ih_l0/0 rnn.bias_hh_l0/0 b.weight/1"
"""Its hidden state, which takes a row of each gate and a column."""


def recurrent(rnn: nn.Module, out: int) -> Net:
    """linear a (7 -> 6), `rnn` (6 -> out), linear b."""
    return Net(lambda net, x: net.b(net.rnn(net.a(x))[0]), a=nn.Linear(7, 6), rnn=rnn, b=nn.Linear(out, 4))


# ---------------------------------------------------------------------------------------------- recurrent layers


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN}")
def lstm() -> Net:
    return recurrent(nn.LSTM(6, 5, batch_first=True), 5)


@specimen(shapes=((6, 6, 7),), least=f"{INTO} {HIDDEN}")
def lstm_alike() -> Net:
    return recurrent(nn.LSTM(6, 6), 6)


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN}")
def gru() -> Net:
    return recurrent(nn.GRU(6, 5), 5)


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN}")
def rnn_with_relu() -> Net:
    return recurrent(nn.RNN(6, 5, nonlinearity="relu", batch_first=True), 5)


@specimen(shapes=ROWS, least="a rnn.weight_ih_l0/1 rnn.weight_ih_l0/0 rnn.weight_hh_l0/1 b.weight/1")
def lstm_without_bias() -> Net:
    return recurrent(nn.LSTM(6, 5, bias=False, batch_first=True), 5)


BACKWARD = "rnn.weight_ih_l0_reverse/0 rnn.weight_ih_l0_reverse/1 rnn.weight_hh_l0_reverse/1"


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN} {BACKWARD}")
def bidirectional_lstm() -> Net:
    """Both directions have as many hidden channels, so they lose the same slots."""
    return recurrent(nn.LSTM(6, 5, bidirectional=True, batch_first=True), 10)


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN} rnn.weight_ih_l1/0 rnn.weight_ih_l1/1 rnn.weight_hh_l1/1")
def two_layers_of_lstm() -> Net:
    return recurrent(nn.LSTM(6, 5, num_layers=2, batch_first=True), 5)


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN} {BACKWARD} rnn.weight_ih_l1/1 rnn.weight_hh_l1_reverse/1")
def two_bidirectional_layers_of_gru() -> Net:
    return recurrent(nn.GRU(6, 5, num_layers=2, bidirectional=True), 10)


@specimen(
    shapes=ROWS, least=f"{INTO} rnn.weight_hh_l0/0 rnn.weight_hh_l0/1 rnn.weight_hr_l0/0 rnn.weight_hr_l0/1 b.weight/1"
)
def lstm_with_projection() -> Net:
    return recurrent(nn.LSTM(6, 5, proj_size=3, batch_first=True), 3)


def packed(rnn: nn.Module) -> Net:
    """Lengths are values, so this is followed on numbers, where PyTorch has fused layers."""

    def run(net: Any, x: Tensor) -> Tensor:
        lengths = torch.arange(1, len(x) + 1)
        packed = nn.utils.rnn.pack_padded_sequence(net.a(x), lengths, batch_first=True, enforce_sorted=False)
        return net.b(nn.utils.rnn.pad_packed_sequence(net.rnn(packed)[0], batch_first=True)[0])

    return Net(run, a=nn.Linear(7, 6), rnn=rnn, b=nn.Linear(5, 4))


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN}")
def lstm_on_packed_sequences() -> Net:
    return packed(nn.LSTM(6, 5, batch_first=True))


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN}")
def gru_on_packed_sequences() -> Net:
    """Its first state is of as many rows as the longest of them has beside it, which is a value."""
    return packed(nn.GRU(6, 5, batch_first=True))


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN}")
def last_hidden_state_of_lstm() -> Net:
    run = lambda net, x: net.b(net.rnn(net.a(x))[1][0][-1])  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), rnn=nn.LSTM(6, 5, batch_first=True), b=nn.Linear(5, 4))


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN} first")
def hidden_state_passed_in() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        first = net.first(x[:, 0]).tanh()[None]
        out, last = net.rnn(net.a(x), first)
        return net.b(out + last.transpose(0, 1))

    return Net(run, a=nn.Linear(7, 6), first=nn.Linear(7, 5), rnn=nn.GRU(6, 5, batch_first=True), b=nn.Linear(5, 4))


@specimen(shapes=ROWS, least=f"{INTO} {HIDDEN}")
def zero_state_of_the_hidden_size() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        zeros = torch.zeros(1, x.shape[0], net.rnn.hidden_size, dtype=x.dtype)
        return net.b(net.rnn(net.a(x), (zeros, zeros + 1))[0])

    return Net(run, a=nn.Linear(7, 6), rnn=nn.LSTM(6, 5, batch_first=True), b=nn.Linear(5, 4))


CELL = "a cell.weight_ih/0 cell.weight_ih/1 cell.weight_hh/0 cell.weight_hh/1 b.weight/1"


@specimen(shapes=ROWS, least=CELL)
def lstm_cell_in_a_loop() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        state = None
        for token in net.a(x).unbind(1):
            state = net.cell(token, state)
        return net.b(state[0])

    return Net(run, a=nn.Linear(7, 6), cell=nn.LSTMCell(6, 5), b=nn.Linear(5, 4))


@specimen(shapes=ROWS, least=CELL)
def gru_cell_in_a_loop() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h, states = x.new_zeros(x.shape[0], net.cell.hidden_size), []
        for t in range(x.shape[1]):
            h = net.cell(net.a(x[:, t]), h)
            states.append(h)
        return net.b(torch.stack(states, dim=1))

    return Net(run, a=nn.Linear(7, 6), cell=nn.GRUCell(6, 5), b=nn.Linear(5, 4))


@specimen(shapes=ROWS, least="a gates gates.weight/1 b.weight/1")
def recurrence_by_hand() -> Net:
    """As in ConvLSTM: input and state are joined, one layer makes all four gates."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], net.hidden)
        for token in net.a(x).unbind(1):
            i, f, g, o = net.gates(torch.cat([token, h], -1)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return net.b(h)

    return Net(run, hidden=5, a=nn.Linear(7, 6), gates=nn.Linear(11, 20), b=nn.Linear(5, 4))


@specimen(shapes=ROWS, least="a a.weight/1 read read.weight/1 b.weight/1")
def recurrence_beside_the_input() -> Net:
    """The state of zeros is joined to what has no channels."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], net.hidden, dtype=x.dtype)
        for token in x.unbind(1):
            h = net.read(net.a(torch.cat([token, h], -1)).tanh()).tanh()
        return net.b(h)

    return Net(run, hidden=5, a=nn.Linear(12, 8), read=nn.Linear(8, 5), b=nn.Linear(5, 4))


@specimen(shapes=ROWS, least="a b b.weight/1 c.weight/1")
def correlation_of_spectra() -> Net:
    """As in Autoformer."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        f, g = torch.fft.rfft(h, dim=1), torch.fft.rfft(net.b(h), dim=1)
        return net.c(torch.fft.irfft(f * torch.conj(g), n=x.shape[1], dim=1))

    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 4))


def one_step(rnn: nn.Module, out: int) -> Net:
    """A sequence that is as short as can be: the state is not fed back."""
    return Net(lambda net, x: net.b(net.rnn(net.a(x).mean(1, keepdim=True))[0]), a=nn.Linear(7, 6), rnn=rnn,
               b=nn.Linear(out, 4))  # fmt: skip


@specimen(shapes=ROWS, least=HIDDEN)
def one_step_of_a_rnn() -> Net:
    return one_step(nn.RNN(6, 5, batch_first=True), 5)


@specimen(shapes=ROWS, least=HIDDEN)
def one_step_of_a_gru() -> Net:
    return one_step(nn.GRU(6, 5, batch_first=True), 5)


@specimen(shapes=ROWS)
def one_step_of_an_lstm_with_projection() -> Net:
    return one_step(nn.LSTM(6, 5, proj_size=3, batch_first=True), 3)


class Cell(nn.Module):
    """Says how many channels its state has, and makes the first one."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.state = state
        self.gates, self.candidate = conv(width + state, 2 * state), conv(width + state, state)

    def first(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], self.state, *x.shape[2:], dtype=x.dtype, device=x.device)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = torch.split(self.gates(torch.cat([h, x], 1)).sigmoid(), self.state, 1)
        return (1 - z) * h + z * self.candidate(torch.cat([r * h, x], 1)).tanh()


GATES = "gates gates.weight/1 candidate candidate.weight/1"


@specimen(
    shapes=((2, 3, 3, 8, 8),), least=" ".join(f"{n}.{place}" for n in ("c", "d") for place in GATES.split()) + " a"
)
def recurrent_convolutions() -> Net:
    """As in ConvGRU: the cell above makes its zeros in a method, called by the network."""

    def run(net: Any, x: Tensor) -> Tensor:
        frames = net.a(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        h, s = net.c.first(frames[:, 0]), net.d.first(frames[:, 0])
        for frame in frames.unbind(1):
            h = net.c(frame, h)
            s = net.d(h, s)
        return net.b(s)

    return Net(run, a=conv(3, 6), c=Cell(6, 5), d=Cell(5, 7), b=conv(7, 4))


@specimen(shapes=([2, 7],), least=HIDDEN + " embed.weight/1 rnn.weight_ih_l0/1 rnn.weight_hh_l0_reverse/1")
def tagger() -> Net:
    run = lambda net, x: net.b(net.rnn(net.embed(x))[0])  # noqa: E731
    rnn = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
    return Net(run, embed=nn.Embedding(10, 6), rnn=rnn, b=nn.Linear(10, 4))


@specimen(shapes=((2, 3, 8, 12),), least=f"{INTO} {HIDDEN}")
def columns_read_by_lstm() -> Net:
    """As in CRNN: the columns of a map are the steps."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = F.max_pool2d(net.a(x).relu(), (8, 2)).squeeze(2).permute(2, 0, 1)
        return net.b(net.rnn(h)[0])

    return Net(run, a=conv(3, 6), rnn=nn.LSTM(6, 5), b=nn.Linear(5, 4))


@specimen(shapes=((2, 3, 8, 12),), least="a b.weight/1 rnn.weight_hh_l0/1")
def rows_and_channels_read_by_gru() -> Net:
    """Channels and height together are the features of a step."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.b(net.rnn(h.permute(0, 3, 1, 2).flatten(2))[0])

    return Net(run, a=conv(3, 6), rnn=nn.GRU(48, 5, batch_first=True), b=nn.Linear(5, 4))


@specimen(shapes=((2, 3, 8),), least="a.0 a.1 a.3.weight/1 a.3")
def temporal_convolutions() -> Net:
    """Causal: padded on one side, cropped after."""
    a = nn.Sequential(nn.Conv1d(3, 6, 3, padding=2), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 3, dilation=2))
    run = lambda net, x: net.b(F.pad(net.a(x)[..., :-2], (4, 0)) + net.down(x))  # noqa: E731
    return Net(run, a=a, down=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 4, 1))


@specimen(shapes=((2, 3, 4, 6, 6),), least="a norm b b.weight/1 c.weight/1")
def video_convolutions() -> Net:
    """Space, then time, as in R(2+1)D."""
    run = lambda net, x: net.c(net.b(net.norm(net.a(x)).relu()).mean((2, 3, 4)))  # noqa: E731
    a, b = nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(6, 5, (3, 1, 1), padding=(1, 0, 0))
    return Net(run, a=a, norm=nn.BatchNorm3d(6), b=b, c=nn.Linear(5, 4))


# ---------------------------------------------------------------------------------------------- gated units


@specimen(least="a b.weight/1")
def gated_linear_unit() -> Net:
    return Net(lambda net, x: net.b(F.glu(net.a(x), dim=1)), a=conv(3, 12), b=conv(6, 4))


@specimen(shapes=ROWS, least="a b.weight/1")
def swiglu_of_one_layer() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        gate, value = net.a(x).chunk(2, dim=-1)
        return net.b(F.silu(gate) * value)

    return Net(run, a=nn.Linear(7, 12), b=nn.Linear(6, 4))


@specimen(shapes=ROWS, least="a b c.weight/1")
def swiglu_of_two_layers() -> Net:
    run = lambda net, x: net.c(F.silu(net.a(x)) * net.b(x))  # noqa: E731
    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(7, 6), c=nn.Linear(6, 4))


@specimen(shapes=ROWS, least="a norm b.weight/1 b c.weight/1")
def product_then_norm() -> Net:
    """A gate that multiplies, then a norm: live statistics of a product."""

    def run(net: Any, x: Tensor) -> Tensor:
        left, right = net.a(x).split(net.hidden, dim=-1)
        return net.c(net.b(net.norm(left * right.sigmoid())).relu())

    layers = {"a": nn.Linear(7, 12), "b": nn.Linear(6, 5), "c": nn.Linear(5, 4)}
    return Net(run, hidden=6, norm=nn.LayerNorm(6), **layers)


@specimen(shapes=ROWS, least="a b a.weight/1 b.weight/1 c.weight/1 stem")
def gated_residual() -> Net:
    """As in highway networks."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        t = net.a(h).sigmoid()
        return net.c(t * net.b(h).relu() + (1 - t) * h)

    layers = {"stem": nn.Linear(7, 6), "a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 4)}
    return Net(run, **layers)


# ---------------------------------------------------------------------------------------------- mixers


def mixer(tokens: int, width: int, features: int) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.embed(x)
        h = h + net.token2(F.gelu(net.token1(net.norm1(h).transpose(1, 2)))).transpose(1, 2)
        h = h + net.channel2(F.gelu(net.channel1(net.norm2(h))))
        return net.head(h.mean(1))

    layers = {"token1": nn.Linear(tokens, 6), "token2": nn.Linear(6, tokens)}
    layers |= {"channel1": nn.Linear(width, 9), "channel2": nn.Linear(9, width)}
    norms = {"norm1": nn.LayerNorm(width), "norm2": nn.LayerNorm(width)}
    return Net(run, embed=nn.Linear(features, width), head=nn.Linear(width, 3), **layers, **norms)


MIXER = "embed token1 token2.weight/1 channel1 channel1.weight/1 channel2 channel2.weight/1 norm1 norm2 head.weight/1"


@specimen(shapes=ROWS, least=MIXER)
def mlp_mixer() -> Net:
    return mixer(5, 8, 7)


@specimen(shapes=((5, 5, 5),), least=MIXER)
def mlp_mixer_alike() -> Net:
    return mixer(5, 5, 5)


@specimen(shapes=ROWS, least="a norm b.weight/1")
def spatial_gating_unit() -> Net:
    """As in gMLP: half of the channels, mixed over the tokens, multiplies the other half."""

    def run(net: Any, x: Tensor) -> Tensor:
        u, v = F.gelu(net.a(x)).chunk(2, dim=-1)
        return net.b(u * net.mix(net.norm(v)))

    return Net(run, a=nn.Linear(7, 12), norm=nn.LayerNorm(6), mix=nn.Conv1d(5, 5, 1), b=nn.Linear(6, 4))


@specimen(shapes=IMAGE, least="embed depth norm point point.weight/1 head.weight/1")
def convolution_mixer() -> Net:
    """As in ConvMixer: a depthwise convolution with its shortcut, then a pointwise one."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.embed(x)
        h = net.norm(net.depth(h).relu()) + h
        return net.head(net.point(h).mean((2, 3)))

    convs = {"embed": nn.Conv2d(3, 6, 2, 2), "depth": conv(6, 6, groups=6), "point": conv(6, 5, 1)}
    return Net(run, norm=nn.BatchNorm2d(6), head=nn.Linear(5, 4), **convs)


@specimen(shapes=ROWS, least="a b.weight/1 freq/2")
def fourier_mixing() -> Net:
    """As in GFNet: each frequency and channel times a complex weight held as a last dim of two."""

    def run(net: Any, x: Tensor) -> Tensor:
        f = torch.fft.rfft(net.a(x), dim=1)
        return net.b(torch.fft.irfft(f * torch.view_as_complex(net.freq), n=x.shape[1], dim=1))

    return Net(run, a=nn.Linear(7, 6), b=nn.Linear(6, 4), freq=parameter(1, 3, 6, 2))


@specimen(shapes=ROWS, least="a decay/0 b.weight/1 state b")
def state_space_scan() -> Net:
    """As in Mamba, one state for each channel: a recurrence along the tokens with an input-dependent step."""

    def run(net: Any, x: Tensor) -> Tensor:
        u, step = net.a(x), F.softplus(net.state(x))
        h, out = torch.zeros_like(u[:, 0]), []
        for t in range(u.shape[1]):
            h = torch.exp(-step[:, t] * net.decay.exp()) * h + step[:, t] * u[:, t]
            out.append(h)
        return net.c(net.b(torch.stack(out, 1)).relu())

    layers = {"a": nn.Linear(7, 6), "state": nn.Linear(7, 6), "b": nn.Linear(6, 5), "c": nn.Linear(5, 4)}
    return Net(run, decay=parameter(6), **layers)
