"""EncNet on ResNet-50 in plain PyTorch, for side-by-side measurements.

Written for the benchmarks from the paper and the keys of PyTorch-Encoding's state
dicts, which `encnet_jax.convert.load` reads, so that both run with the same weights.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions."""

    def __init__(self, channels, planes, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(
            planes, planes, 3, stride, dilation, dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride != 1 or channels != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, stride, bias=False),
                nn.BatchNorm2d(4 * planes),
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Backbone(nn.Module):
    """Dilated ResNet-50 with a stem of three 3x3 convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, 1, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 128, 3, 1, 1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(128)
        self.layer1 = self._stage(128, 64, 3, 1, 1, 1)
        self.layer2 = self._stage(256, 128, 4, 2, 1, 1)
        self.layer3 = self._stage(512, 256, 6, 1, 1, 2)
        self.layer4 = self._stage(1024, 512, 3, 1, 2, 4)

    def _stage(self, channels, planes, blocks, stride, first, dilation):
        rest = [Bottleneck(4 * planes, planes, 1, dilation) for _ in range(blocks - 1)]
        return nn.Sequential(Bottleneck(channels, planes, stride, first), *rest)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer2(self.layer1(F.max_pool2d(x, 3, 2, 1)))
        return self.layer4(self.layer3(x))


class Encoding(nn.Module):
    """Encoding layer: residuals to the codewords, aggregated by soft assignment."""

    def __init__(self, channels, codes):
        super().__init__()
        self.codewords = nn.Parameter(torch.zeros(codes, channels))
        self.scale = nn.Parameter(torch.zeros(codes))

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        distance = (
            x.square().sum(2, keepdim=True)
            - 2 * x @ self.codewords.T
            + self.codewords.square().sum(1)
        )
        weights = (self.scale * distance).softmax(2)
        return weights.transpose(1, 2) @ x - (
            weights.sum(1)[..., None] * self.codewords
        )


class ContextEncoding(nn.Module):
    """Context Encoding Module: channel attention from an encoding of the image."""

    def __init__(self, channels, classes, codes):
        super().__init__()
        self.encoding = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            Encoding(channels, codes),
            nn.BatchNorm1d(codes),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.selayer = nn.Linear(channels, classes)

    def forward(self, x):
        gate = self.fc(self.encoding(x).mean(1))
        return F.relu(x + x * gate[..., None, None])


class EncNet(nn.Module):
    """Maps normalized images (b, 3, h, w) to logits (b, classes, h, w)."""

    def __init__(self, classes, codes=32):
        super().__init__()
        self.pretrained = Backbone()
        self.head = nn.Module()
        self.head.conv5 = nn.Sequential(
            nn.Conv2d(2048, 512, 3, 1, 1, bias=False),
            nn.BatchNorm2d(512),
            nn.ReLU(inplace=True),
        )
        self.head.encmodule = ContextEncoding(512, classes, codes)
        self.head.conv6 = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(512, classes, 1))

    def forward(self, images):
        x = self.head.encmodule(self.head.conv5(self.pretrained(images)))
        return F.interpolate(
            self.head.conv6(x), images.shape[2:], mode="bilinear", align_corners=True
        )


def random_weights(model, seed=0):
    """Fills a model with weights that preserve variance; returns them as arrays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                fan_in = value[0].numel()
                value.copy_(drawn * (2 / fan_in) ** 0.5)
            elif name.endswith("running_var"):
                value.copy_(1 + drawn.abs() / 10)
            elif name.endswith("bn3.weight"):
                value.fill_(0.25)  # keeps residual sums small
            elif name.endswith("scale"):
                value.copy_(-drawn.abs() / 500)
            elif name.endswith("weight"):
                value.copy_(1 + drawn / 10)
            else:
                value.copy_(drawn / 10)
    return {name: value.numpy() for name, value in model.state_dict().items()}
