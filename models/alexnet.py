"""AlexNet in torchvision's form (Krizhevsky, 2014: "One weird trick"), for 224x224 and for 32x32 images."""

from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions, three linear layers; module names and, at 224, shapes are torchvision's, so its weights load.

    Below 64 pixels the stem of the original (11x11, stride 4, then overlapping 3x3 pools) would leave nothing to
    look at, so small images get a 3x3 stem of stride 2, pools of 2x2, and a 2x2 map instead of 6x6 before the
    classifier. The widths are the same.

    >>> import torch
    >>> AlexNet(image_size=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        if image_size < 16:
            raise ValueError(f"AlexNet needs images of 16x16 or more, got image_size={image_size}")
        self.input_size = (in_channels, image_size, image_size)
        small = image_size < 64
        pool = 2 if small else 3
        side = 2 if small else 6
        kernel, stride, padding = (3, 2, 1) if small else (11, 4, 2)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, kernel, stride, padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(pool, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * side * side, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))  # (B, 256, side, side)
        return self.classifier(x.flatten(1))  # (B, num_classes)
