"""Data sets: what is in which split, that batches repeat exactly, and what is said of data that is not in order."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from hfp.experiment import data
from hfp.experiment.images import FolderImages, MemoryImages

# Python 3.12 warns of every fork of a process that has threads; torch's loader forks its workers, and warns where a
# test asks for more of them than there are cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


def make_folder(root: Path, splits: dict[str, dict[str, int]], size: tuple[int, int] = (12, 8)) -> Path:
    """Class folders of PNG files (width, height) = size, every image different."""
    rng = np.random.default_rng(0)
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path, {"train": {"cat": 20, "dog": 10}, "test": {"cat": 3, "dog": 2}})


def gather(split: data.Split, **options) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*split.batches(8, **options), strict=True)
    return torch.cat(xs), torch.cat(ys)


def as_bytes(split: data.Split, x: Tensor) -> Tensor:
    """Undo the normalisation."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (split.mean, split.std))
    return ((x * std + mean) * 255).round().to(torch.uint8)


# ---- splits


def test_digits(digits: data.Dataset) -> None:
    assert digits.input_size == (1, 28, 28)
    assert digits.classes == tuple("0123456789")
    assert len(digits.train) + len(digits.validation) + len(digits.test) == 1797


def test_splits_share_no_image(digits: data.Dataset) -> None:
    images = [{x.numpy().tobytes() for x in s.images.pixels} for s in (digits.train, digits.validation, digits.test)]
    assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]


def test_splits_are_stratified(digits: data.Dataset) -> None:
    whole = torch.cat([s.labels for s in (digits.train, digits.validation, digits.test)]).bincount()
    assert ((digits.test.labels.bincount() - 0.2 * whole).abs() <= 0.5).all()
    assert ((digits.validation.labels.bincount() - 0.1 * 0.8 * whole).abs() <= 0.6).all()


@pytest.mark.parametrize("share, counts", [(0.1, [2, 1]), (0.25, [5, 1]), (0.001, [1, 1]), (0.999, [19, 2])])
def test_hold_out_takes_a_share_of_every_class(share: float, counts: list[int]) -> None:
    labels = torch.tensor([0] * 20 + [1] * 3)
    rest, held = data.hold_out(labels, share, seed=0)
    assert labels[held].bincount().tolist() == counts
    assert torch.equal(torch.cat([rest, held]).sort().values, torch.arange(23))


def test_seed_chooses_the_validation_split_and_not_the_test_split(digits: data.Dataset) -> None:
    other, same = data.load("digits", seed=1), data.load("digits")
    assert not torch.equal(other.validation.images.pixels, digits.validation.images.pixels)
    assert torch.equal(other.test.images.pixels, digits.test.images.pixels)
    assert torch.equal(same.validation.images.pixels, digits.validation.images.pixels)


def test_statistics_are_of_the_training_images(digits: data.Dataset) -> None:
    x, _ = gather(digits.train)
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_given_statistics_are_used(folder: Path) -> None:
    loaded = data.load("imagefolder", folder, statistics=data.IMAGENET)
    assert (loaded.mean, loaded.std) == data.IMAGENET == (loaded.test.mean, loaded.test.std)
    x, _ = gather(loaded.test)
    pixel = loaded.test.images.pixels[0, 2, 1, 1].item()
    assert x[0, 2, 1, 1].item() == pytest.approx((pixel / 255 - 0.406) / 0.225, rel=1e-5)


def test_images_of_one_colour_do_not_divide_by_zero() -> None:
    assert data.measure(torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)) == ([1.0], [1 / 255])


# ---- batches


def test_evaluation_is_in_stored_order(digits: data.Dataset) -> None:
    x, y = gather(digits.test)
    assert torch.equal(y, digits.test.labels)
    assert torch.equal(as_bytes(digits.test, x), digits.test.images.pixels)


def test_every_image_comes_once_an_epoch(digits: data.Dataset) -> None:
    x, y = gather(digits.validation, seed=3, epoch=5)
    seen = sorted(zip((image.numpy().tobytes() for image in as_bytes(digits.validation, x)), y.tolist(), strict=True))
    stored = zip(digits.validation.images.pixels, digits.validation.labels.tolist(), strict=True)
    assert seen == sorted((image.numpy().tobytes(), label) for image, label in stored)


def test_batches_are_a_function_of_seed_and_epoch(digits: data.Dataset) -> None:
    def epoch(seed: int, epoch: int) -> Tensor:
        return gather(digits.validation, seed=seed, epoch=epoch, augment=True)[0]

    first = epoch(0, 1)
    torch.manual_seed(1234)
    assert torch.equal(first, epoch(0, 1))
    assert not torch.equal(first, epoch(0, 0))
    assert not torch.equal(first, epoch(1, 1))
    assert not torch.equal(epoch(1, 0), epoch(0, 1))


@pytest.mark.parametrize("workers", [None, 0])
def test_batches_leave_the_global_generators_alone(workers: int | None, digits: data.Dataset, folder: Path) -> None:
    loaded = digits if workers is None else data.load("imagefolder", folder, memory_limit=0, workers=workers)
    before = torch.random.get_rng_state()
    gather(loaded.train, seed=0, augment=True)
    gather(loaded.train)
    assert torch.equal(before, torch.random.get_rng_state())


def test_start_skips_batches(digits: data.Dataset) -> None:
    options = {"seed": 0, "epoch": 2, "augment": True}
    whole = list(digits.validation.batches(16, **options))
    rest = list(digits.validation.batches(16, start=3, **options))
    assert len(whole) == 9 and len(rest) == 6
    for (x, y), (x_again, y_again) in zip(whole[3:], rest, strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)


def test_augmentation_does_not_depend_on_the_batch_size(digits: data.Dataset) -> None:
    whole, _ = next(digits.validation.batches(1000, seed=0, augment=True))
    assert torch.equal(whole, gather(digits.validation, seed=0, augment=True)[0])


@pytest.mark.parametrize("size, drop_last, batches", [(143, True, 1), (142, True, 1), (142, False, 2), (200, True, 1)])
def test_last_batch(size: int, drop_last: bool, batches: int, digits: data.Dataset) -> None:
    split = digits.validation  # 143 images
    assert split.num_batches(size, drop_last=drop_last) == batches
    assert len(list(split.batches(size, drop_last=drop_last))) == batches


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 8, "augment": True}, "augment=True needs a seed: batches"),
        ({"batch_size": 8, "start": -1}, "start must be 0 or more batches, got -1"),
    ],
)
def test_wrong_batches_are_refused_at_once(options: dict, message: str, digits: data.Dataset) -> None:
    with pytest.raises(ValueError, match=message):
        digits.test.batches(**options)


def test_to_moves_pixels(digits: data.Dataset) -> None:
    moved = digits.to("meta")
    assert moved.train.images.pixels.device.type == "meta"
    assert moved.train.labels.device.type == "cpu" and moved.name == "digits"


# ---- augmentation


@pytest.mark.parametrize(
    "name, mirror", [("digits", False), ("mnist", False), ("fashionmnist", True), ("cifar10", True)]
)
def test_mirroring_where_it_makes_sense(name: str, mirror: bool, fake_torchvision: None, tmp_path: Path) -> None:
    assert data.load(name, tmp_path).train.images.mirror is mirror


# ---- torchvision's sets, with the reading of their files replaced


@pytest.fixture
def fake_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for files too big for a test: 30 training and 10 test images, in the forms of torchvision's sets."""

    def maker(colour: bool):
        def make(root: Path, train: bool, download: bool) -> SimpleNamespace:
            count = 30 if train else 10
            rng = np.random.default_rng(count)
            classes, targets = ["a", "b"], [i % 2 for i in range(count)]
            if colour:
                pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
                return SimpleNamespace(data=pixels, targets=targets, classes=classes)
            pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            return SimpleNamespace(data=torch.from_numpy(pixels), targets=torch.tensor(targets), classes=classes)

        return make

    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(torchvision.datasets, name, maker(colour=True))
    for name in ("MNIST", "FashionMNIST"):
        monkeypatch.setattr(torchvision.datasets, name, maker(colour=False))


@pytest.mark.parametrize("name, size", [("cifar10", (3, 32, 32)), ("cifar100", (3, 32, 32)), ("mnist", (1, 28, 28))])
def test_torchvision_sets(name: str, size: tuple[int, int, int], fake_torchvision: None, tmp_path: Path) -> None:
    loaded = data.load(name, tmp_path)
    assert loaded.input_size == size and loaded.classes == ("a", "b")
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (26, 4, 10)
    rng = np.random.default_rng(10)
    if size[0] == 3:  # channels are moved to the front, nothing is mixed up
        first = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)[0]
        assert torch.equal(loaded.test.images.pixels[0], torch.from_numpy(first).permute(2, 0, 1))


def test_image_size_resizes_small_sets(fake_torchvision: None, tmp_path: Path) -> None:
    loaded = data.load("mnist", tmp_path, image_size=32)
    assert loaded.input_size == (1, 32, 32)
    assert next(loaded.train.batches(4))[0].shape == (4, 1, 32, 32)


def test_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"cifar10 is not in {tmp_path} .*CIFAR10 lays it out.* downloading is off"):
        data.load("cifar10", tmp_path, download=False)


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: torchvision.datasets.MNIST) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
    with pytest.raises(ValueError, match=rf"mnist is not in {tmp_path} .*could not be downloaded: .*no route to host"):
        data.load("mnist", tmp_path)


# ---- folders of images


def test_folder_in_memory(folder: Path) -> None:
    loaded = data.load("imagefolder", folder)
    assert isinstance(loaded.train.images, MemoryImages)
    assert loaded.input_size == (3, 8, 12) and loaded.classes == ("cat", "dog")
    assert [s.labels.bincount().tolist() for s in (loaded.train, loaded.validation, loaded.test)] == [
        [18, 9],
        [2, 1],
        [3, 2],
    ]
    expected = np.asarray(Image.open(folder / "test" / "dog" / "1.png"))
    assert torch.equal(loaded.test.images.pixels[4], torch.tensor(expected).permute(2, 0, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_folder_gives_the_same_images(workers: int, folder: Path) -> None:
    memory = data.load("imagefolder", folder)
    streamed = data.load("imagefolder", folder, memory_limit=0, workers=workers)
    assert isinstance(streamed.train.images, FolderImages)
    assert (streamed.mean, streamed.std, streamed.input_size) == (memory.mean, memory.std, memory.input_size)
    for seed in (None, 0):
        for (x, y), (x_memory, y_memory) in zip(
            streamed.train.batches(8, seed=seed), memory.train.batches(8, seed=seed), strict=True
        ):
            assert torch.equal(x, x_memory) and torch.equal(y, y_memory)


def test_streamed_augmentation_depends_on_seed_and_epoch_only(folder: Path) -> None:
    alone, pair = (data.load("imagefolder", folder, memory_limit=0, workers=n).train for n in (0, 2))
    first = gather(alone, seed=0, epoch=1, augment=True)[0]
    torch.manual_seed(99)
    assert torch.equal(first, gather(pair, seed=0, epoch=1, augment=True)[0])
    assert torch.equal(first[16:], torch.cat([x for x, _ in pair.batches(8, seed=0, epoch=1, augment=True, start=2)]))
    assert not torch.equal(first, gather(alone, seed=0, epoch=2, augment=True)[0])
    assert not torch.equal(first, gather(alone, seed=0, epoch=1)[0])


def test_folder_of_val_and_test_holds_nothing_out(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": {"a": 3, "b": 1}, "val": {"a": 2, "b": 1}, "test": {"a": 1, "b": 1}})
    loaded = data.load("imagefolder", tmp_path)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (4, 3, 2)


def test_val_is_the_test_split_if_there_is_no_other(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": {"a": 4, "b": 2}, "val": {"a": 3, "b": 1}})
    loaded = data.load("imagefolder", tmp_path)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (4, 2, 4)


def test_images_of_several_sizes_become_photographs(folder: Path) -> None:
    Image.new("L", (300, 200), 77).save(folder / "train" / "dog" / "0.png")
    loaded = data.load("imagefolder", folder)
    assert loaded.input_size == (3, 224, 224)
    assert (loaded.train.images.pixels == 77).all(dim=(1, 2, 3)).sum() + (
        (loaded.validation.images.pixels == 77).all(dim=(1, 2, 3)).sum()
    ) == 1


def test_image_size_makes_folders_square(folder: Path) -> None:
    assert data.load("imagefolder", folder, image_size=16).train.images.pixels.shape == (27, 3, 16, 16)


# ---- data that is not in order


def empty_class(root: Path) -> None:
    (root / "train" / "bird").mkdir()
    (root / "test" / "bird").mkdir()


def other_classes(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "wolf")


def no_test(root: Path) -> None:
    (root / "test").rename(root / "holdout")


def no_classes(root: Path) -> None:
    (root / "test").rename(root / "old")
    (root / "test").mkdir()


def one_class(root: Path) -> None:
    """The folder above the right one."""
    for part in ("train", "test"):
        (root / part).rename(root / "all")
        (root / part).mkdir()
        (root / "all").rename(root / part / "all")


def single_image(root: Path) -> None:
    for path in sorted((root / "train" / "dog").iterdir())[1:]:
        path.unlink()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (empty_class, "train has class folders without images: bird"),
        (other_classes, "classes of train and test in .* differ; only in train: dog; only in test: wolf"),
        (no_test, "needs the folders train, and val or test, with class folders; it has train only"),
        (no_classes, "test has no class folders"),
        (one_class, "train has one class folder only, all, so there is nothing to learn from"),
        (single_image, "nothing can be held out of classes with one training image: dog"),
    ],
)
def test_folders_that_are_not_in_order(spoil, message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        data.load("imagefolder", folder)


def test_hidden_files_and_folders_are_not_looked_at(folder: Path) -> None:
    before = data.load("imagefolder", folder)
    (folder / "train" / "cat" / "._5.jpg").write_bytes(b"as macOS adds them")
    (folder / "train" / ".thumbnails").mkdir()
    after = data.load("imagefolder", folder)
    assert len(after.train) == len(before.train) and after.classes == before.classes


def test_folders_within_class_folders(folder: Path) -> None:
    """As torchvision's ImageFolder takes them; hidden ones, and links that may lead round in circles, are left out."""
    before = data.load("imagefolder", folder)
    cat = folder / "train" / "cat"
    images = sorted(cat.iterdir())
    for name in ("a/b", ".thumbnails"):
        (cat / name).mkdir(parents=True)
    (cat / "a" / "round").symlink_to(cat)
    images[0].rename(cat / "a" / "b" / images[0].name)
    (cat / ".thumbnails" / "x.jpg").write_bytes(images[1].read_bytes())
    after = data.load("imagefolder", folder)
    assert after.classes == before.classes
    assert [len(split) for split in (after.train, after.validation, after.test)] == [
        len(split) for split in (before.train, before.validation, before.test)
    ]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere needs the folders train, .*; it has none of them"):
        data.load("imagefolder", tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["cut", "text", "empty"])
def test_corrupt_image_is_named(content: str, folder: Path) -> None:
    path = folder / "train" / "cat" / "5.jpg"
    Image.effect_noise((12, 8), 50).convert("RGB").save(path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) * 3 // 4], "text": b"not an image", "empty": b""}[content])
    with pytest.raises(ValueError, match=rf"^{path} is not an image that can be read: "):
        data.load("imagefolder", folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_is_named_when_streamed(workers: int, folder: Path) -> None:
    loaded = data.load("imagefolder", folder, memory_limit=0, workers=workers)
    path = folder / "test" / "cat" / "1.png"
    path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=rf"^{path} is not an image that can be read: [^\n]*$"):
        list(loaded.test.batches(2))


STREAM = """
import sys
from hfp.experiment import data

loaded = data.load("imagefolder", sys.argv[1], memory_limit=0, workers=2)
for path in loaded.train.images.paths:
    path.write_bytes(b"not an image")
try:
    list(loaded.train.batches(2))
except ValueError as error:
    kept = error.__cause__  # and with it, by its traceback, the iterator that has the workers
    print("refused")
"""


def test_workers_end_with_the_program(folder: Path) -> None:
    """They ignore SIGTERM, by which Python asks what is left of them at its end."""
    command = [sys.executable, "-c", STREAM, str(folder)]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.parametrize(
    "call, message",
    [
        ({"name": "imagenet"}, "unknown data set 'imagenet'; there are digits, cifar10"),
        ({"name": "digits", "validation": 0}, "validation must be a share .*, got 0"),
        ({"name": "digits", "validation": 1.5}, "validation must be a share .*, got 1.5"),
        ({"name": "digits", "validation": float("nan")}, "validation must be a share .*, got nan"),
        ({"name": "digits", "image_size": 0}, "image_size must be 1 pixel or more, got 0"),
        ({"name": "digits", "statistics": data.IMAGENET}, "statistics for 3 and 3 channels, but the images have 1"),
        ({"name": "digits", "image_size": 224, "memory_limit": 2**20}, "digits at 224x224 needs 0.084 GiB of memory"),
    ],
)
def test_wrong_calls_are_told_what_would_do(call: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(**call)
