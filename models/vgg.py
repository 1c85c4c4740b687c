"""VGG-16 with batch normalisation for 32x32 images and one linear layer, as the pruning literature uses it."""

from torch import Tensor, nn

WIDTHS: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16BN(nn.Module):
    """VGG-16-BN (Simonyan & Zisserman, 2015), for 32x32 images: 14,724,042 parameters, 313.20 M MACs.

    The convolutions have no bias (the normalisation that follows has one).

    >>> import torch
    >>> VGG16BN()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32, in_channels: int = 3) -> None:
        super().__init__()
        if image_size < 32:
            raise ValueError(
                f"VGG16BN halves the image five times and needs 32x32 or more, got image_size={image_size}"
            )
        self.input_size = (in_channels, image_size, image_size)
        layers: list[nn.Module] = []
        previous = in_channels
        for stage in WIDTHS:
            for width in stage:
                conv = nn.Conv2d(previous, width, kernel_size=3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                previous = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))  # (B, 512, 1, 1)
        return self.classifier(x.flatten(1))  # (B, num_classes)
