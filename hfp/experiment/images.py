"""The images of a split: held in memory or decoded from disk, read in any order, augmented reproducibly.

>>> import torch
>>> pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
>>> images = MemoryImages(pixels, labels=torch.arange(10), shift=1, mirror=True)
>>> batches = list(images.read([torch.tensor([3, 1]), torch.tensor([2])], None, torch.device("cpu")))
>>> [tuple(x.shape) for x in batches]
[(2, 3, 8, 8), (1, 3, 8, 8)]

Random choices are drawn from generators that are seeded with (seed, epoch), never from the global ones.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop

from hfp.experiment import stopping

Variant = tuple[int, int]  # (seed, epoch): names the random choices of one epoch
AUGMENTATION = -1  # sets the random numbers of crops and mirroring apart from those of the order of the images
MARGIN = 1 / 16  # cut off each side of an image that is resized: the usual "resize to 256, keep the central 224"
SAMPLE = 1000  # images on disk that statistics are taken from
BATCH_BYTES = 2**20  # of decoded images that are passed from one process to another at a time


class Images(Protocol):
    """Images and labels of one split, in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, on the CPU."""

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    def read(self, batches: Sequence[Tensor], variant: Variant | None, device: torch.device) -> Iterator[Tensor]:
        """uint8 images (B, C, H, W) on `device` for each tensor of indices; augmented if there is a `variant`."""

    def sample(self) -> Tensor:
        """uint8 images (n, C, H, W) that are enough to tell mean and standard deviation."""

    def to(self, device: torch.device | str) -> "Images":
        """The same images, on `device` if they are held in memory."""


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """All images as one tensor, uint8 (N, C, H, W). Augmentation: shifted by up to `shift` pixels, and mirrored."""

    pixels: Tensor
    labels: Tensor
    shift: int
    mirror: bool

    @property
    def size(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def sample(self) -> Tensor:
        return self.pixels

    def to(self, device: torch.device | str) -> Images:
        return replace(self, pixels=self.pixels.to(device))

    def read(self, batches: Sequence[Tensor], variant: Variant | None, device: torch.device) -> Iterator[Tensor]:
        moves = draw_moves(len(self.labels), self.shift, self.mirror, variant) if variant else None
        for index in batches:
            x = self.pixels[index.to(self.pixels.device)].to(device)
            yield x if moves is None else shift_and_mirror(x, moves[index], self.shift)


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Files that are decoded when they are needed, by `workers` processes. Augmentation: that of ImageNet training,
    a random part of the image of random area and aspect ratio, and mirroring."""

    paths: list[Path]
    labels: Tensor
    size: tuple[int, int, int]
    workers: int

    def sample(self) -> Tensor:
        step = max(1, len(self.paths) // SAMPLE)
        return decode_all(self.paths[::step], self.size, self.workers)

    def to(self, device: torch.device | str) -> Images:
        return self

    def read(self, batches: Sequence[Tensor], variant: Variant | None, device: torch.device) -> Iterator[Tensor]:
        images = Decoded(self.paths, self.size, variant)
        for x in decode_batches(images, batches, self.workers, pin=device.type == "cuda"):
            yield x.to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Decoded(Dataset[Tensor]):
    """What a worker process sees: index -> image, augmented if there is a `variant`."""

    paths: Sequence[Path]
    size: tuple[int, int, int]
    variant: Variant | None

    def __getitem__(self, index: int) -> Tensor:
        if self.variant is None:
            return decode(self.paths[index], self.size[1:])
        # torchvision's transforms draw from the global generator; seeded per image, they depend on nothing else.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(*self.variant, index))  # torch.manual_seed: the GPU's, too
            x = decode(self.paths[index], crop=RandomResizedCrop(self.size[1:]))
            return x.flip(-1) if torch.rand(()) < 0.5 else x


def draw_moves(count: int, shift: int, mirror: bool, variant: Variant) -> Tensor:
    """What happens to each image in one epoch, (N, 3): top and left offset in [0, 2 * shift], and whether mirrored.

    Drawn for all images at once, and on the CPU, so that it depends neither on an image's batch nor on the device.
    """
    choices = generator(*variant, AUGMENTATION)
    offsets = torch.randint(0, 2 * shift + 1, (count, 2), generator=choices)
    flips = torch.randint(0, 2, (count, 1), generator=choices) * int(mirror)
    return torch.cat([offsets, flips], dim=1)


def shift_and_mirror(x: Tensor, moves: Tensor, shift: int) -> Tensor:
    """Cut images of their own size out of x (B, C, H, W) padded with `shift` black pixels, and mirror some of them.

    A move (0, 0, 0) cuts at the top left corner of the padded image, (shift, shift, 0) changes nothing.
    """
    batch, channels, height, width = x.shape
    top, left, flip = moves.to(x.device).unbind(1)  # (B,) each
    rows = top[:, None] + torch.arange(height, device=x.device)  # (B, H)
    columns = torch.arange(width, device=x.device).expand(batch, -1)  # (B, W)
    columns = left[:, None] + torch.where(flip[:, None] == 1, columns.flip(1), columns)
    image = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return F.pad(x, (shift,) * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def decode(path: Path, size: tuple[int, int] | None = None, crop: RandomResizedCrop | None = None) -> Tensor:
    """Read one image, uint8 (3, H, W), cut by `crop`, or else resized to cover (H, W) and cut around its centre."""
    try:
        with Image.open(path) as file:
            image = _as_bytes(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
    if crop is not None:
        image = crop(image)
    elif size is not None and image.size != size[::-1]:  # PIL has the width first
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR, bleed=MARGIN)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _as_bytes(image: Image.Image) -> Image.Image:
    """The upper byte of 16-bit greys, of which PIL would cut off all but the darkest.

    ValueError for floating-point numbers, of which nothing tells what is white.
    """
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers, whose range is unknown; write it in 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def decode_all(paths: Sequence[Path], size: tuple[int, int, int], workers: int) -> Tensor:
    """Read many images as one uint8 tensor (N, 3, H, W)."""
    pixels = torch.empty(len(paths), *size, dtype=torch.uint8)
    per_batch = max(1, BATCH_BYTES // pixels[:1].numel())
    indices = torch.arange(len(paths)).split(per_batch)
    if len(paths) < 2000:
        workers = 0  # done before other processes would have started
    batches = decode_batches(Decoded(paths, size, None), indices, workers)
    for index, x in zip(indices, batches, strict=True):
        pixels[index] = x
    return pixels


def decode_batches(images: Decoded, batches: Sequence[Tensor], workers: int, pin: bool = False) -> Iterator[Tensor]:
    """uint8 images (B, C, H, W) for each tensor of indices, decoded ahead by `workers` processes (0: in this one).

    Processes, because threads slow each other down (small images are mostly Python's work, not the decoder's).
    """
    stopping.end_workers_at_exit()
    loader = DataLoader(
        images,
        batch_sampler=[index.tolist() for index in batches],
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=stopping.ignored,
        generator=torch.Generator(),  # the loader would otherwise draw from the global one
    )
    try:
        yield from loader
    except ValueError as error:  # of `decode`, wrapped in the traceback of the worker when it comes from one
        raise ValueError(str(error).rpartition("ValueError: ")[2].strip()) from error


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers, such that (1, 2) and (2, 1), or (0, 1) and (1, 0), have nothing in common."""
    return random.Random(repr(parts)).getrandbits(63)


def generator(*parts: int) -> torch.Generator:
    """A generator that is a pure function of these numbers."""
    return torch.Generator().manual_seed(mixed_seed(*parts))
