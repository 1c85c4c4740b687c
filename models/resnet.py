"""The ResNets of the CIFAR experiments (He et al., 2016, section 4.2): three stages of 16, 32 and 64 channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (20, 32, 44, 56, 110)


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides to fill the wider map. No parameters.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2)).

    The usual ``F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, n, n))`` has its widths written as numbers, and a number in the
    code cannot follow when channels are removed: the padding, and with it the whole residual stream, would have to
    stay as wide as it was. Here the zeros are tensors with a channel axis of their own, which are sliced along with
    the weights; either may even end with no channel at all. They hold no information, so checkpoints do not carry
    them (``persistent=False``) and those of the usual formulation load.
    """

    before: Tensor  # (1, n, 1, 1)
    after: Tensor  # (1, n, 1, 1)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        missing = out_channels - in_channels
        self.register_buffer("before", torch.zeros(1, missing // 2, 1, 1), persistent=False)
        self.register_buffer("after", torch.zeros(1, missing - missing // 2, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, ::2, ::2]
        batch, _, height, width = x.shape
        # Under autocast x is of a lower precision than the buffers, and cat would promote the whole map to theirs.
        before = self.before.to(x.dtype).expand(batch, -1, height, width)
        after = self.after.to(x.dtype).expand(batch, -1, height, width)
        return torch.cat([before, x, after], dim=1)


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Option B: a strided 1x1 convolution and its normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, in_channels, H, W) -> (B, width, H / stride, W / stride)."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            padded = shortcut == "A"
            self.shortcut = (
                PaddedShortcut(in_channels, width) if padded else projection_shortcut(in_channels, width, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A ResNet of depth 6n + 2 for 32x32 images. Depth 56 with option A: 853,018 parameters, 125,485,696 MACs.

    Module names are those of the widely used checkpoints of Yerlan Idelbayev (conv1, bn1, layerN.M.conv1, ..., linear).

    >>> import torch
    >>> CifarResNet(20)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        image_size: int = 32,
        in_channels: int = 3,
        shortcut: str = "A",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"the depth of a CIFAR ResNet is 6n + 2 (20, 32, 44, 56, 110), got {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f'shortcut is "A" (zero padding) or "B" (projection), got {shortcut!r}')
        self.input_size = (in_channels, image_size, image_size)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = make_stage(16, 16, blocks, stride=1, shortcut=shortcut)
        self.layer2 = make_stage(16, 32, blocks, stride=2, shortcut=shortcut)
        self.layer3 = make_stage(32, 64, blocks, stride=2, shortcut=shortcut)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 16, 32, 32)
        x = self.layer1(x)  # (B, 16, 32, 32)
        x = self.layer2(x)  # (B, 32, 16, 16)
        x = self.layer3(x)  # (B, 64, 8, 8)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (B, 64)
        return self.linear(x)  # (B, num_classes)


def make_stage(in_channels: int, width: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    """`blocks` residual blocks of `width` channels; the first changes resolution and width."""
    first = BasicBlock(in_channels, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width, 1, shortcut) for _ in range(blocks - 1)))
