"""What a user might name as `module:function`."""

from __future__ import annotations

from torch import Tensor, nn

net = nn.Linear(2, 3)
text = "a string"


class Two(nn.Module):
    """Takes indices and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.sound, self.out = nn.Embedding(9, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, words: Tensor, sound: Tensor) -> Tensor:
        return self.out(self.words(words) + self.sound(sound))


class Flipped(nn.Sequential):
    """What the second of three layers makes is flipped."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 1), nn.Conv2d(6, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self[2](self[1](self[0](x)).flip(1))


class Resized(nn.Sequential):
    """Takes images, and the size that they are to have."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        height, width = size.tolist()
        return super().forward(nn.functional.interpolate(x, (int(height), int(width))))


def build() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 4))


def sized() -> nn.Module:
    model = nn.Conv2d(3, 4, 3)
    model.input_size = (3, 8, 8)  # type: ignore[assignment]
    return model


def tall() -> nn.Module:
    """Does not tell what it takes."""
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


def needy(width: int) -> nn.Module:
    return nn.Linear(width, 3)


def string() -> str:
    return "a string"
