"""The architectures of the crate that neither timm nor torchvision has, as PyTorch modules.

Their tensor names are the ones in published checkpoints, so a state dict of these files loads
strictly into them and the crate reads the same names.
"""

import re

import torch
from torch import nn
from torch.nn import functional as F


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of the ResNet paper).

    Where the block halves the image, the shortcut keeps every second pixel, starting at the first,
    and puts the new zero channels half before and half after the old ones.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.before or self.after:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.before, self.after))
        return F.relu(y + shortcut)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images: stages of 16, 32 and 64 channels, n blocks each."""

    def __init__(self, depth: int, num_classes: int, channels: int = 3):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth {depth} is not 6n + 2")
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = CifarBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


# Convolutions of each of the five stages; a 2x2 max-pool ends every stage.
VGG_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
VGG_WIDTHS = (64, 128, 256, 512, 512)


class PooledHead(nn.Module):
    """Global average pool and one linear layer, called `fc`."""

    def __init__(self, features: int, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x):
        return self.fc(x.mean(dim=(2, 3)))


class VggFeatures(nn.Module):
    """The convolutions of VGG under torchvision's names, with a pooled head in place of fc6 to fc8."""

    def __init__(self, depth: int, batch_norm: bool, num_classes: int, channels: int = 3):
        super().__init__()
        layers: list[nn.Module] = []
        for count, width in zip(VGG_DEPTHS[depth], VGG_WIDTHS, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = PooledHead(channels, num_classes)

    def forward(self, x):
        return self.head(self.features(x))


def create(name: str, num_classes: int, channels: int = 3) -> nn.Module:
    """`cifar_resnet{20,32,44,56,...}` or `vgg{11,13,16,19}[_bn]_features`."""
    if found := re.fullmatch(r"cifar_resnet(\d+)", name):
        return CifarResNet(int(found[1]), num_classes, channels)
    if found := re.fullmatch(r"vgg(11|13|16|19)(_bn)?_features", name):
        return VggFeatures(int(found[1]), found[2] is not None, num_classes, channels)
    raise ValueError(f"no reference model is called {name}")


if __name__ == "__main__":
    for row in ("cifar_resnet20", "vgg11_features", "vgg16_bn_features"):
        model = create(row, 10)
        print(row, sum(p.numel() for p in model.parameters()), tuple(model(torch.zeros(2, 3, 32, 32)).shape))
