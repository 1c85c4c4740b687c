"""Attention, second half: normalised queries, other attention, packed layers, transformers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from attended import DEFAULT, FUSED, STREAM, TOKENS, attended, fused, merged, qkv_of, weighed
from specimen import IMAGE, Net, parameter, registry
from torch import Tensor, nn
from torchvision.models.video.swin_transformer import SwinTransformer3d

LAYERS, specimen = registry()


# ---------------------------------------------------------------------------------------------- queries normalised


@specimen(shapes=TOKENS, least=FUSED)
def layer_norm_of_queries_and_keys() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        return merged(net, weighed(net.q_norm(q), net.k_norm(k), v, net.scale))

    return attended(run, DEFAULT, q_norm=nn.LayerNorm(4), k_norm=nn.LayerNorm(4), **fused(DEFAULT))


@specimen(shapes=TOKENS, least=f"{FUSED} logit_scale/0")
def cosine_attention() -> Net:
    """As in Swin V2: queries and keys of length one, a temperature for each head."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return merged(net, (scores * torch.clamp(net.logit_scale, max=4.6).exp()).softmax(-1) @ v)

    return attended(run, DEFAULT, logit_scale=parameter(3, 1, 1), **fused(DEFAULT))


@specimen(shapes=TOKENS, least=f"{FUSED} before.weight/1 after")
def talking_heads() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        scores = net.before((q @ k.mT * net.scale).permute(0, 2, 3, 1)).softmax(2)
        return merged(net, net.after(scores).permute(0, 3, 1, 2) @ v)

    return attended(run, DEFAULT, before=nn.Linear(3, 3), after=nn.Linear(3, 3), **fused(DEFAULT))


@specimen(shapes=TOKENS, least=f"{FUSED} gamma/0 norm.weight/0")
def scaled_branch() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, net.norm(x))
        return net.gamma * merged(net, weighed(q, k, v, net.scale))

    return attended(run, DEFAULT, gamma=parameter(24), norm=nn.LayerNorm(24), **fused(DEFAULT))


# ---------------------------------------------------------------------------------------------- other attention


@specimen(shapes=TOKENS, least=f"{FUSED} temperature/0")
def attention_between_channels() -> Net:
    """As in XCiT: the scores are dim x dim, of queries and keys normalised over the tokens."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = (F.normalize(t.transpose(-2, -1), dim=-1) for t in qkv_of(net, x))
        out = ((q @ k.transpose(-2, -1)) * net.temperature).softmax(-1) @ v
        return net.proj(out.permute(0, 3, 1, 2).reshape(*x.shape[:2], -1))

    return attended(run, DEFAULT, temperature=parameter(3, 1, 1), **fused(DEFAULT))


@specimen(shapes=TOKENS, least=FUSED)
def efficient_attention() -> Net:
    """Softmax of queries along the head dimension, of keys along the tokens; keys meet values first."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        return merged(net, q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v))

    return attended(run, DEFAULT, **fused(DEFAULT))


@specimen(shapes=TOKENS, least=FUSED)
def linear_attention() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return merged(net, q @ (k.mT @ v) / ((q * k.sum(2, keepdim=True)).sum(-1, keepdim=True) + 1e-6))

    return attended(run, DEFAULT, **fused(DEFAULT))


@specimen(shapes=IMAGE, least="embed proj head.weight/1 qkv qkv.weight/1 proj.weight/1")
def attention_over_the_pixels_of_a_map() -> Net:
    """Channels first, 1x1 convolutions, as in diffusion networks."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.embed(x)
        b, c, height, width = h.shape
        q, k, v = net.qkv(net.norm(h)).reshape(b, 3, net.heads, -1, height * width).unbind(1)
        weights = torch.einsum("bhci,bhcj->bhij", q, k).softmax(-1)
        out = torch.einsum("bhij,bhcj->bhci", weights, v).reshape(b, -1, height, width)
        return net.head(h + net.proj(out))

    convs = {"embed": (3, 10), "qkv": (10, 36), "proj": (12, 10), "head": (10, 6)}
    parts = {name: nn.Conv2d(i, o, 1) for name, (i, o) in convs.items()}
    return Net(forward, heads=3, norm=nn.BatchNorm2d(10), **parts)


@specimen(shapes=TOKENS, least=f"{STREAM} score.weight/1")
def pooled_by_attention() -> Net:
    """One score for each token; their weighted mean is added to all."""
    run = lambda net, x: net.proj((net.score(x).softmax(1) * x).sum(1, keepdim=True))  # noqa: E731
    return attended(run, DEFAULT, score=nn.Linear(24, 1), proj=nn.Linear(24, 24))


@specimen(shapes=TOKENS, least=f"{STREAM} query/2 kv kv.weight/1 proj.weight/1")
def pooled_by_a_learned_query() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        k, v = net.kv(x).reshape(b, n, 2, net.heads, -1).permute(2, 0, 3, 1, 4)
        q = net.query.expand(b, -1, -1).unflatten(-1, (net.heads, -1)).transpose(1, 2)
        return net.proj(weighed(q, k, v, net.scale).transpose(1, 2).flatten(2))

    return attended(run, DEFAULT, query=parameter(1, 1, 12), kv=nn.Linear(24, 24))


@specimen(shapes=TOKENS, least=f"{FUSED} again again.weight/1 after.weight/1")
def one_bias_of_zeros_for_two_layers() -> Net:
    """As in T5's cross-attention: the first layer makes it, of as many heads as it has, and hands it on."""

    def run(net: Any, x: Tensor) -> Tensor:
        bias = torch.zeros(1, net.heads, x.shape[1], x.shape[1]).to(x)
        for qkv, proj in ((net.qkv, net.proj), (net.again, net.after)):
            b, n, _ = x.shape
            q, k, v = qkv(x).view(b, n, 3, -1, net.dim).permute(2, 0, 3, 1, 4)
            x = x + proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))
        return x

    return attended(run, DEFAULT, **fused(DEFAULT), again=nn.Linear(24, 36), after=nn.Linear(12, 24))


@specimen(shapes=TOKENS, least=FUSED)
def delta_rule() -> Net:
    """As in Qwen3.5's linear attention: what each token adds to the memory, all tokens at once."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        overlap = torch.eye(x.shape[1]).to(x) + (k @ k.mT).tril(-1) * net.scale
        added = torch.linalg.solve_triangular(overlap, v, upper=False, unitriangular=True)
        return merged(net, (q @ k.mT).tril() @ added)

    return attended(run, DEFAULT, **fused(DEFAULT))


@specimen(shapes=TOKENS, least=FUSED)
def delta_rule_of_rows() -> Net:
    """The same, written the other way round."""

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = qkv_of(net, x)
        overlap = torch.eye(x.shape[1]).to(x) + (k @ k.mT).triu(1) * net.scale
        added = torch.linalg.solve_triangular(overlap, v.mT, upper=True, left=False)
        return merged(net, (q @ k.mT).tril() @ added.mT)

    return attended(run, DEFAULT, **fused(DEFAULT))


# ---------------------------------------------------------------------------------------------- packed layers

PACKED = "mix.in_proj_weight/0 mix.in_proj_weight/1 mix.out_proj mix.out_proj.weight/1 embed head.weight/1"


def beside(run: Any, **parts: Any) -> Net:
    """`attended` without a projection of its own; width 12, 3 heads of 4."""
    parts = {"proj": nn.Identity(), **parts}
    net = Net(lambda net, x: net.head(net.embed(x) + run(net, net.embed(x))), embed=nn.Linear(7, 12), **parts)
    net.head = nn.Linear(12, 6)
    return net


@specimen(shapes=TOKENS, least=PACKED)
def multihead_attention() -> Net:
    run = lambda net, x: net.mix(x, x, x, need_weights=False)[0]  # noqa: E731
    return beside(run, mix=nn.MultiheadAttention(12, 3, batch_first=True))


@specimen(shapes=TOKENS, least=PACKED)
def multihead_attention_tokens_first() -> Net:
    """With the weights of the attention in use."""

    def run(net: Any, x: Tensor) -> Tensor:
        out, weights = net.mix(*[x.transpose(0, 1)] * 3)
        return out.transpose(0, 1) + weights.mean((1, 2))[:, None, None]

    return beside(run, mix=nn.MultiheadAttention(12, 3))


@specimen(shapes=TOKENS, least=PACKED)
def multihead_attention_within_and_by_a_query_of_its_own() -> Net:
    """One layer, called twice, in whose parts other channels have to be hidden the second time."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = x + net.mix(x, x, x)[0]
        return net.mix(net.query.expand(len(x), -1, -1), h, h)[0]

    return beside(run, mix=nn.MultiheadAttention(12, 3, batch_first=True), query=parameter(1, 1, 12))


@specimen(shapes=TOKENS, least=PACKED)
def multihead_attention_with_pairs_hidden() -> Net:
    """PyTorch's layer and ours make the same of a mask of true and false, in the same order."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.mix(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool, device=x.device).triu(1))[0]

    return beside(run, mix=nn.MultiheadAttention(12, 3, batch_first=True))


def attention_called(packed: Tensor | None) -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        parts = (net.q, net.k, net.v)
        biases = torch.cat([part.bias for part in parts])
        weights = {f"{name}_proj_weight": part.weight for name, part in zip("qkv", parts, strict=True)}
        out = (net.out.weight, net.out.bias)
        h = x.transpose(0, 1)
        rest = (x.shape[-1], 3, packed, biases, None, None, False, 0.0)
        options = {"training": net.training, "use_separate_proj_weight": True, "need_weights": False}
        return F.multi_head_attention_forward(h, h, h, *rest, *out, **options, **weights)[0].transpose(0, 1)

    return beside(run, **{name: nn.Linear(12, 12) for name in ("q", "k", "v", "out")})


@specimen(shapes=TOKENS)
def multihead_attention_as_a_function() -> Net:
    """PyTorch's function, called by the model's own code, insists on its width."""
    return attention_called(None)


@specimen(shapes=TOKENS)
def multihead_attention_as_a_function_with_an_empty_weight() -> Net:
    """As in WavLM, where something has to be given."""
    return attention_called(torch.empty(0))


@specimen(shapes=TOKENS, least=f"{PACKED} mix.bias_k/2 mix.bias_v/2")
def multihead_attention_with_keys_of_its_own() -> Net:
    """A learned one, and one of zeros; beside them, some are hidden."""

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        hidden[:, -1] = True
        return net.mix(x, x, x, key_padding_mask=hidden)[0]

    mix = nn.MultiheadAttention(12, 3, bias=False, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    return beside(run, mix=mix)


@specimen(shapes=((2, 5, 7), (2, 6, 8)), least="embed memory values mix.out_proj head.weight/1 mix.k_proj_weight/1")
def multihead_attention_of_other_keys() -> Net:
    """kdim and vdim: three projections instead of one."""

    def forward(net: Any, x: Tensor, y: Tensor) -> Tensor:
        h = net.embed(x)
        return net.head(h + net.mix(h, net.memory(y), net.values(y))[0])

    mix = nn.MultiheadAttention(12, 3, kdim=10, vdim=9, batch_first=True)
    parts = {"embed": nn.Linear(7, 12), "memory": nn.Linear(8, 10), "values": nn.Linear(8, 9)}
    return Net(forward, mix=mix, head=nn.Linear(12, 6), **parts)


def packed_layer(kind: Any, **options: Any) -> nn.Module:
    return kind(12, 3, dim_feedforward=10, dropout=0.0, batch_first=True, **options)


FEED_FORWARD = "mix.linear1 mix.linear2.weight/1 embed head.weight/1 mix.linear2 mix.norm1"


@specimen(shapes=TOKENS, least=FEED_FORWARD)
def encoder_layer() -> Net:
    return beside(lambda net, x: net.mix(x), mix=packed_layer(nn.TransformerEncoderLayer))


@specimen(shapes=TOKENS, least=FEED_FORWARD)
def encoder_layer_normed_first() -> Net:
    layer = packed_layer(nn.TransformerEncoderLayer, norm_first=True, activation="gelu")
    return beside(lambda net, x: net.mix(x), mix=layer)


@specimen(shapes=TOKENS)
def encoder_with_padding() -> Net:
    """PyTorch's own encoder makes nested tensors of such inputs, in evaluation mode."""

    def run(net: Any, x: Tensor) -> Tensor:
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        padding[:, -1:] = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*nested tensors is in prototype")
            return net.mix(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0.0)

    layer = nn.TransformerEncoderLayer(12, 4, 10, 0.0, batch_first=True)  # nested only where heads are even
    return beside(run, mix=nn.TransformerEncoder(layer, 2))


@specimen(shapes=TOKENS, least=FEED_FORWARD)
def decoder_layer() -> Net:
    return beside(lambda net, x: net.mix(x, net.memory(x).tanh()), mix=packed_layer(nn.TransformerDecoderLayer),
                  memory=nn.Linear(12, 12))  # fmt: skip


@specimen(shapes=TOKENS, least=FEED_FORWARD)
def decoder_layer_normed_first() -> Net:
    def run(net: Any, x: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return net.mix(x, x.tanh(), tgt_mask=causal)

    return beside(run, mix=packed_layer(nn.TransformerDecoderLayer, norm_first=True))


# ---------------------------------------------------------------------------------------------- whole transformers


@specimen(shapes=TOKENS, least="embed head.weight/1 " + " ".join(f"mix.encoder.layers.{n}.linear2" for n in (0, 1)))
def transformer_with_learned_queries() -> Net:
    """As in DETR. PyTorch's module looks at the width itself, and fails if it is not the one it was told."""
    run = lambda net, x: net.mix(net.embed(x), net.queries.expand(x.shape[0], -1, -1))  # noqa: E731
    mix = nn.Transformer(12, 4, 2, 2, 10, 0.0, batch_first=True)
    return Net(lambda net, x: net.head(run(net, x)), embed=nn.Linear(7, 12), mix=mix, head=nn.Linear(12, 6),
               queries=parameter(1, 5, 12))  # fmt: skip


class Block(nn.Module):
    """Pre-norm block of a vision transformer; `gated` makes the MLP a SwiGLU and the norms RMSNorm."""

    def __init__(self, width: int, heads: int, dim: int, hidden: int, gated: bool = False) -> None:
        super().__init__()
        norm = nn.RMSNorm if gated else nn.LayerNorm
        self.num_heads, self.head_dim = heads, dim
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * heads * dim), nn.Linear(heads * dim, width)
        self.gate = nn.Linear(width, hidden) if gated else None
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=self.gate is not None)
        x = x + self.proj(out.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        hidden = F.silu(self.gate(h)) * self.fc1(h) if self.gate else F.gelu(self.fc1(h))
        return x + self.fc2(hidden)


INSIDE = " ".join(f"blocks.{i}.{name}" for i in (0, 1) for name in (
    "norm1", "qkv", "qkv.weight/1", "proj", "proj.weight/1", "norm2", "fc1", "fc1.weight/1", "fc2", "fc2.weight/1"
))  # fmt: skip


@specimen(shapes=IMAGE, least=f"patch cls/2 position/2 {INSIDE} norm head.weight/1")
def vision_transformer() -> Net:
    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((net.cls.expand(tokens.shape[0], -1, -1), tokens), dim=1) + net.position
        return net.head(net.norm(net.blocks(tokens))[:, 0])

    blocks = nn.Sequential(Block(24, 3, 4, 10), Block(24, 2, 6, 14))
    tokens = {"cls": parameter(1, 1, 24), "position": parameter(1, 17, 24)}
    return Net(forward, patch=nn.Conv2d(3, 24, 2, 2), blocks=blocks, norm=nn.LayerNorm(24), head=nn.Linear(24, 6),
               **tokens)  # fmt: skip


@specimen(shapes=([2, 7],), least=f"embed.weight/1 {INSIDE} norm")
def language_model_with_tied_embedding() -> Net:
    def forward(net: Any, ids: Tensor) -> Tensor:
        h = net.embed(ids) + net.position.weight[: ids.shape[1]]
        return F.linear(net.norm(net.blocks(h)), net.embed.weight)

    blocks = nn.Sequential(Block(20, 3, 4, 10, gated=True), Block(20, 2, 4, 14, gated=True))
    tables = {"embed": nn.Embedding(10, 20), "position": nn.Embedding(9, 20)}
    return Net(forward, blocks=blocks, norm=nn.RMSNorm(20), **tables)


@specimen(shapes=((1, 3, 4, 16, 16),), least="patch_embed.proj head.weight/1")
def video_windows() -> nn.Module:
    """Windows that are shifted in time as well, with tables of positions by head."""
    return SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [2, 3, 3], num_classes=5)
