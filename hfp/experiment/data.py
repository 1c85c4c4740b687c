"""Image data sets by name, as batches that are ready for the network.

>>> from hfp.experiment import data
>>> digits = data.load("digits")
>>> digits.input_size, len(digits.train), len(digits.validation), len(digits.test)
((1, 28, 28), 1295, 143, 359)
>>> x, y = next(digits.train.batches(32, seed=0, epoch=0, augment=True))
>>> x.shape, x.dtype, y.shape
(torch.Size([32, 1, 28, 28]), torch.float32, torch.Size([32]))

A small set is one uint8 tensor in memory, cropped, flipped and normalised a batch at a time on the device, so loading
never limits training. A folder of images that is too big for that is decoded from disk while training goes on, behind
the same interface. Either way the batches of an epoch are a pure function of (seed, epoch): a run that is resumed
sees what the uninterrupted one would have seen, without any saved state of a random number generator.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from hfp.experiment.images import FolderImages, Images, MemoryImages, Variant, decode, decode_all, generator
from hfp.words import first_few

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel, of values in [0, 1]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what torchvision's weights were trained with
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashionmnist": "FashionMNIST"}
NAMES = ("digits", *TORCHVISION, "imagefolder")
UPRIGHT = ("digits", "mnist")  # sets in which a mirror image is another thing, or nothing
PHOTO_SIZE = 224  # for folders whose images differ in size


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one purpose (train, validation or test), and how they are normalised."""

    images: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels(self) -> Tensor:
        """(N,) int64, on the CPU, in stored order."""
        return self.images.labels

    def to(self, device: torch.device | str) -> "Split":
        """The same split; images that are held in memory move to `device`."""
        return dataclasses.replace(self, images=self.images.to(device))

    def num_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """How many batches an epoch has; `drop_last` leaves out a short last one unless it is the only one."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        full, rest = divmod(len(self), batch_size)
        return full if rest == 0 or (drop_last and full) else full + 1

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        augment: bool = False,
        drop_last: bool = False,
        start: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (x, y): normalised float32 images (B, C, H, W) and int64 labels (B,), both on `device`.

        Without a `seed` the images come in their stored order; with one they are shuffled, and with `augment` also
        cropped and mirrored at random, as a pure function of (seed, epoch) and the image. `start` skips that many
        batches at no cost, to resume in the middle of an epoch.
        """
        if augment and seed is None:
            raise ValueError("augment=True needs a seed: batches(..., seed=0, epoch=epoch, augment=True)")
        if start < 0:
            raise ValueError(f"start must be 0 or more batches, got {start}")
        stop = self.num_batches(batch_size, drop_last=drop_last)
        order = torch.arange(len(self)) if seed is None else torch.randperm(len(self), generator=generator(seed, epoch))
        variant = (seed, epoch) if augment and seed is not None else None
        return self._batches(order.split(batch_size)[start:stop], variant, torch.device(device))

    def _batches(
        self, indices: Sequence[Tensor], variant: Variant | None, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        # Apart from `batches`, which, being no generator itself, reports wrong arguments when it is called.
        mean = torch.tensor(self.mean, device=device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=device).view(-1, 1, 1)
        for index, x in zip(indices, self.images.read(indices, variant, device), strict=True):
            yield x.float().div_(255).sub_(mean).div_(std), self.labels[index].to(device)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits, and what a network for them needs to know."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]  # (C, H, W)

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data; images that are held in memory move to `device`, so that batches need no transfer."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return dataclasses.replace(self, train=train, validation=validation, test=test)


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (rest, held) such that `share` of every class is held: at least one image, and never all. In order."""
    random_bits = generator(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=random_bits)[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def measure(pixels: Tensor) -> Statistics:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W), as shares of 255."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in pixels.unbind(1):  # histograms: exact, and no float copy of all pixels
        weight = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(weight @ values))
        spread = float(weight @ (values - mean[-1]) ** 2) ** 0.5
        std.append(max(spread, 1 / 255))  # images of one colour are no reason to divide by zero
    return mean, std


def load(
    name: str,
    data_dir: str | Path = "data",
    *,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    statistics: Statistics | None = None,
    memory_limit: int = 4 * 2**30,
    workers: int | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set.

    Arguments:
        name: one of `NAMES`. "digits" comes with scikit-learn; "imagefolder" is any `data_dir` with folders `train`
            and `test` or `val` of class folders (with all three, `val` is the validation split); the others are
            torchvision's, found in `data_dir` or downloaded to it.
        validation: share of the training images to hold out, of every class alike.
        seed: of the choice which; keep it for all runs that are to be compared. The test split is always the same.
        image_size: make the images square with this side; left out, they keep the size they have (folders of
            images of several sizes: 224).
        statistics: (mean, std) per channel to normalise with; those of the training images if left out.
        memory_limit: in bytes; a larger image folder is read from disk while training.
        workers: processes that decode images; one for each core that this process may use, at most 8, if left out.
        download: whether torchvision's sets may be downloaded.

    Raises ValueError for an unknown name, data that is missing, inconsistent or corrupt, and a failed download.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(NAMES)}")
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a share of the training images between 0 and 1, got {validation}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be 1 pixel or more, got {image_size}")
    if name == "imagefolder":
        workers = min(8, cores()) if workers is None else workers
        classes, *splits = load_folder(Path(data_dir), validation, seed, image_size, memory_limit, workers)
    else:
        classes, *splits = load_small(name, Path(data_dir), validation, seed, image_size, memory_limit, download)
    mean, std = map(tuple, statistics or measure(splits[0].sample()))
    channels = splits[0].size[0]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"statistics for {len(mean)} and {len(std)} channels, but the images have "
            f"{channels}; with statistics=None (--statistics data) the images' own are taken"
        )
    train, held, test = (Split(images, mean, std) for images in splits)
    return Dataset(name, train, held, test, classes, mean, std, splits[0].size)


def cores() -> int:
    """How many cores this process may use: fewer than the machine has where it is pinned, as in a batch system."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Arrays = tuple[Tensor, Tensor]  # pixels and labels
Files = tuple[list[Path], Tensor]  # paths and labels
Parts = tuple[tuple[str, ...], Images, Images, Images]  # names of the classes; train, validation, test


def load_small(
    name: str,
    data_dir: Path,
    validation: float,
    seed: int,
    image_size: int | None,
    memory_limit: int,
    download: bool,
) -> Parts:
    """A set that comes as arrays, held in memory."""
    classes, train, test = read_digits() if name == "digits" else read_torchvision(name, data_dir, download)
    channels, own_side = train[0].shape[1:3]
    side = image_size or (28 if name == "digits" else own_side)  # 8x8 digits are enlarged to those of LeNet-5
    needed = (len(train[0]) + len(test[0])) * channels * side * side
    if needed > memory_limit:
        raise ValueError(
            f"{name} at {side}x{side} needs {needed / 2**30:.2g} GiB of memory, over memory_limit="
            f"{memory_limit / 2**30:.2g} GiB; give a smaller image_size or a larger memory_limit"
        )

    def images(pixels: Tensor, labels: Tensor) -> MemoryImages:
        return MemoryImages(resize(pixels, side), labels, shift=side // 8, mirror=name not in UPRIGHT)

    pixels, labels = train
    rest, held = hold_out(labels, validation, seed)
    return classes, images(pixels[rest], labels[rest]), images(pixels[held], labels[held]), images(*test)


def read_digits() -> tuple[tuple[str, ...], Arrays, Arrays]:
    """scikit-learn's 1,797 handwritten digits, uint8 (N, 1, 8, 8); a fifth of each class is the test split."""
    from sklearn.datasets import load_digits  # here, because the import takes a second that other sets need not wait

    content = load_digits()
    pixels = torch.from_numpy(content.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(content.target).long()
    train, test = hold_out(labels, 0.2, seed=0)
    classes = tuple(str(digit) for digit in content.target_names)
    return classes, (pixels[train], labels[train]), (pixels[test], labels[test])


def read_torchvision(name: str, data_dir: Path, download: bool) -> tuple[tuple[str, ...], Arrays, Arrays]:
    """One of torchvision's sets, uint8 (N, C, H, W), from `data_dir`, downloaded to it if need be."""
    kind = getattr(torchvision.datasets, TORCHVISION[name])
    try:
        train, test = (kind(data_dir, train=train, download=False) for train in (True, False))
    except RuntimeError as missing:
        where = f"{name} is not in {data_dir.absolute()} (as torchvision.datasets.{TORCHVISION[name]} lays it out)"
        if not download:
            raise ValueError(f"{where}, and downloading is off") from missing
        try:
            train, test = (kind(data_dir, train=train, download=True) for train in (True, False))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{where}, and could not be downloaded: {error}") from error
    return tuple(train.classes), to_arrays(train), to_arrays(test)


def to_arrays(part: Any) -> Arrays:
    """A torchvision set, which keeps (N, H, W) or (N, H, W, C), as pixels (N, C, H, W) and labels (N,)."""
    pixels = torch.as_tensor(part.data)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return pixels, torch.as_tensor(part.targets)


def resize(pixels: Tensor, side: int) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, side, side), bilinear, smoothed where it shrinks."""
    if pixels.shape[2:] == (side, side):
        return pixels
    chunks = [  # one at a time, because floats are four times as large
        F.interpolate(chunk.float(), (side, side), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for chunk in pixels.split(4096)
    ]
    return torch.cat(chunks)


def load_folder(
    root: Path, validation: float, seed: int, image_size: int | None, memory_limit: int, workers: int
) -> Parts:
    """Class folders of images: in memory if they fit, else read from disk while training."""
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in names or len(names) < 2:
        found = f"it has {', '.join(names)} only" if names else "it has none of them"
        raise ValueError(f"{root.absolute()} needs the folders train, and val or test, with class folders; {found}")
    listings = {name: list_images(root / name) for name in names}
    check_same_classes(root, listings)
    files = [label_files(listing) for listing in listings.values()]
    if len(files) == 2:
        single = [name for name, paths in listings["train"].items() if len(paths) == 1]
        if single:
            raise ValueError(f"nothing can be held out of classes with one training image: {first_few(single)}")
        paths, labels = files[0]
        halves = hold_out(labels, validation, seed)
        files[:1] = [([paths[i] for i in index], labels[index]) for index in halves]
    height, width = (image_size, image_size) if image_size else common_size(listings["train"])
    size = (3, height, width)
    in_memory = sum(len(paths) for paths, _ in files) * 3 * height * width <= memory_limit

    def images(paths: list[Path], labels: Tensor) -> Images:
        if not in_memory:
            return FolderImages(paths, labels, size, workers)
        return MemoryImages(decode_all(paths, size, workers), labels, shift=height // 8, mirror=True)

    train, held, test = files
    return tuple(listings["train"]), images(*train), images(*held), images(*test)


def list_images(folder: Path) -> dict[str, list[Path]]:
    """Name of each class folder -> its image files, those in folders within it too, both sorted."""
    listing = {entry.name: sorted(_images(entry)) for entry in sorted(_seen(folder)) if entry.is_dir()}
    if len(listing) < 2:
        found = f"one class folder only, {next(iter(listing))}" if listing else "no class folders"
        raise ValueError(f"{folder.absolute()} has {found}, so there is nothing to learn from")
    empty = [name for name, paths in listing.items() if not paths]
    if empty:
        raise ValueError(f"{folder.absolute()} has class folders without images: {first_few(empty)}")
    return listing


def _images(folder: Path) -> Iterator[Path]:
    """Those in it, and in the folders within it; what a link leads to might lie above."""
    for entry in _seen(folder):
        if entry.is_dir():
            yield from [] if entry.is_symlink() else _images(entry)
        elif entry.suffix.lower() in IMG_EXTENSIONS:
            yield entry


def _seen(folder: Path) -> Iterator[Path]:
    """What is in it but for hidden files and folders, such as those that macOS adds."""
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def check_same_classes(root: Path, listings: dict[str, dict[str, list[Path]]]) -> None:
    """Every folder must have the classes of `train`, or its labels would mean something else."""
    classes = set(listings["train"])
    for name, listing in listings.items():
        ours, theirs = sorted(classes - set(listing)), sorted(set(listing) - classes)
        if ours or theirs:
            only = [
                f"only in {where}: {first_few(names)}" for where, names in (("train", ours), (name, theirs)) if names
            ]
            raise ValueError(f"classes of train and {name} in {root.absolute()} differ; {'; '.join(only)}")


def label_files(listing: dict[str, list[Path]]) -> Files:
    """All paths, class after class, and the number of the class of each."""
    counts = torch.tensor([len(paths) for paths in listing.values()])
    return [path for paths in listing.values() for path in paths], torch.arange(len(counts)).repeat_interleave(counts)


def common_size(listing: dict[str, list[Path]]) -> tuple[int, int]:
    """(H, W) of the images if the first of each class agree, otherwise that of photographs."""
    first, *others = (paths[0] for paths in listing.values())
    height, width = decode(first).shape[1:]
    same = all(decode(path).shape[1:] == (height, width) for path in others)  # stops at the first that differs
    return (height, width) if same else (PHOTO_SIZE, PHOTO_SIZE)
