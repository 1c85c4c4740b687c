"""The cost model on PaG's two published ResNet-50s, against sums over their widths."""

from __future__ import annotations

import pytest
import torch
import torchvision
from promises import measured

import hfp
from hfp.cutting.surgery import compact

# Stem, then conv1, conv2, conv3 of every block (Salama et al., arXiv 1912.00200, the authors' own files).
REMOVED_30 = """63 59,56,199 60,64,199 64,64,199 128,128,353 62,76,353 128,128,353 128,128,353 256,251,918 205,211,918
    231,235,918 255,235,918 256,243,918 256,253,918 512,222,1921 511,315,1921 512,186,1921"""
REMOVED_45 = """63 59,56,198 60,63,198 64,64,198 128,128,348 51,61,348 128,128,348 128,128,348 256,241,905 174,150,905
    189,176,905 250,209,905 256,208,905 256,233,905 512,221,1098 508,302,1098 512,186,1098"""
BLOCKS = (3, 4, 6, 3)
DENSE = " ".join(
    ["64"] + [f"{w},{w},{4 * w}" for w, n in zip((64, 128, 256, 512), BLOCKS, strict=True) for _ in range(n)]
)


def widths_of(text: str) -> list[int]:
    return [int(width) for width in text.replace(",", " ").split()]


def costs(widths: list[int]) -> tuple[int, int]:
    """(multiply-adds, parameters) of a ResNet-50 of these widths at 224x224, by K^2 C_in C_out and its map's size."""
    macs = params = 0

    def conv(narrow: int, wide: int, kernel: int, side: int) -> None:
        nonlocal macs, params
        macs += kernel**2 * narrow * wide * side**2
        params += kernel**2 * narrow * wide + 2 * wide  # and the batch norm behind it

    conv(3, widths[0], 7, 112)
    before, side, rest = widths[0], 56, widths[1:]
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            one, two, three, *rest = rest
            conv(before, one, 1, side)
            side = side // 2 if stage and not block else side  # the second convolution strides
            conv(one, two, 3, side)
            conv(two, three, 1, side)
            if not block:
                conv(before, three, 1, side)
            before = three
    return macs + before * 1000, params + before * 1000 + 1000


@pytest.mark.parametrize(
    ("text", "params_m", "removed", "macs_removed"),
    [(DENSE, 25.557, 0.0, 0.0), (REMOVED_30, 17.896, 0.2998, 0.233), (REMOVED_45, 13.862, 0.4576, 0.309)],
    ids=["dense", "30 %", "45 %"],
)
def test_published_networks_cost_what_their_widths_say(
    text: str, params_m: float, removed: float, macs_removed: float
) -> None:
    widths, (dense_macs, dense_params) = widths_of(text), costs(widths_of(DENSE))
    macs, params = costs(widths)
    assert round(params / 1e6, 3) == params_m
    assert round(1 - params / dense_params, 4) == removed and round(1 - macs / dense_macs, 3) == macs_removed
    model = torchvision.models.resnet50(weights=None).eval()
    table = hfp.trace(model, torch.zeros(1, 3, 224, 224))
    names = ["conv1"] + [
        f"layer{stage}.{block}.conv{number}"
        for stage, blocks in enumerate(BLOCKS, start=1)
        for block in range(blocks)
        for number in (1, 2, 3)
    ]
    keep = torch.ones(table.channels, dtype=torch.bool)
    for name, width in zip(names, widths, strict=True):
        keep[table.axes[f"{name}.weight"][0][width:]] = False
    small = compact(model, table, keep)
    assert [small.get_submodule(name).out_channels for name in names] == widths
    assert (table.macs.count(keep), table.params.count(keep)) == (macs, params)
    assert measured(small.to("meta"), ((torch.zeros(1, 3, 224, 224, device="meta"),), {})) == (macs, params)
