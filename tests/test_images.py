"""Single images: how they are decoded, shifted, mirrored, and what seeds are made of."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from hfp.experiment.images import decode, draw_moves, mixed_seed, shift_and_mirror


def test_shift_and_mirror_is_pad_crop_and_flip() -> None:
    x = torch.randint(1, 256, (40, 3, 6, 5), dtype=torch.uint8)
    moves = draw_moves(40, shift=2, mirror=True, variant=(0, 0))
    moved = shift_and_mirror(x, moves, shift=2)
    for image, result, (top, left, flip) in zip(x, moved, moves.tolist(), strict=True):
        padded = torchvision.transforms.functional.pad(image, [2])
        cropped = torchvision.transforms.functional.crop(padded, top, left, 6, 5)
        assert torch.equal(result, cropped.flip(-1) if flip else cropped)


def test_moves_are_bounded_and_all_happen() -> None:
    moves = draw_moves(1000, shift=2, mirror=True, variant=(0, 0))
    assert [column.unique().tolist() for column in moves.unbind(1)] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1]]
    assert not draw_moves(1000, shift=2, mirror=False, variant=(0, 0))[:, 2].any()


def test_resizing_keeps_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 36:92] = 200  # the central 56 columns, which are what is left of 64 after the margins
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = decode(tmp_path / "x.png", (56, 56))
    assert image.shape == (3, 56, 56) and (image == 200).all()


def test_mixed_seeds_differ_and_stay_the_same() -> None:
    parts = [*itertools.product(range(5), repeat=1), *itertools.product(range(5), repeat=2)]
    assert len({mixed_seed(*numbers) for numbers in parts}) == len(parts)
    assert mixed_seed(0, 1) == mixed_seed(0, 1) == 4499712255002397205  # or resumed runs would differ


@pytest.mark.parametrize(("mode", "form"), [("I;16", "png"), ("I", "tif")])
def test_greys_of_16_bits_keep_their_range(mode: str, form: str, tmp_path: Path) -> None:
    greys = np.linspace(0, 65535, 64).reshape(8, 8)
    image = Image.fromarray(greys.astype(np.uint16 if mode == "I;16" else np.int32))
    assert image.mode == mode
    image.save(tmp_path / f"grey.{form}")
    found = decode(tmp_path / f"grey.{form}")
    assert torch.equal(found, torch.from_numpy(greys.astype(np.int64) >> 8).to(torch.uint8).expand(3, 8, 8))


def test_floating_point_numbers_are_refused(tmp_path: Path) -> None:
    """From 0 to 1, they would all come out black."""
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x.tif is not an image that can be read: it holds floating-point numbers"):
        decode(tmp_path / "x.tif")
