"""The 14-layer classifiers in plain PyTorch, for side-by-side measurements.

Layers are named as in `encnet_jax.models.cifar`, so that they load its weights. Uses
channels_last, fused SGD and, optionally, `torch.compile`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import Candidate
from benchmarks.torch_encnet import Encoding
from benchmarks.torch_training import Normalized
from encnet_jax.data.dataset_info import CIFAR10


class SqueezeExcitation(nn.Module):
    """Channel attention from the mean over the image."""

    def __init__(self, features):
        super().__init__()
        self.squeeze = nn.Linear(features, features // 16)
        self.excite = nn.Linear(features // 16, features)

    def forward(self, x):
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * gate[..., None, None]


class EncodingAttention(nn.Module):
    """Channel attention from an encoding of length one."""

    def __init__(self, features, codes):
        super().__init__()
        reduced = features // 4
        self.conv = nn.Conv2d(features, reduced, 1)
        self.norm = nn.BatchNorm2d(reduced)
        self.encoding = Encoding(reduced, codes)
        self.linear = nn.Linear(codes * reduced, features)

    def forward(self, x):
        reduced = F.relu(self.norm(self.conv(x)), inplace=True)
        with torch.autocast(x.device.type, enabled=False):  # distances cancel
            encoded = self.encoding(reduced.float())
        gate = self.linear(F.normalize(encoded.flatten(1), dim=1)).sigmoid()
        return x * gate[..., None, None]


class Block(nn.Module):
    """Residual block of two 3x3 convolutions: pre-norm, or post-norm with attention."""

    def __init__(self, channels, planes, stride, attention):
        super().__init__()
        pre_norm = attention is None
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels if pre_norm else planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(planes)
        self.attention = attention
        self.shortcut = None
        if stride != 1 or channels != planes:
            self.shortcut = nn.Conv2d(channels, planes, 1, stride)

    def forward(self, x):
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if self.attention is None:
            y = self.conv1(F.relu(self.norm1(x), inplace=True))
            y = self.conv2(F.relu(self.norm2(y), inplace=True))
            y += shortcut
            return y
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.attention(self.norm2(self.conv2(y)))
        y += shortcut
        return F.relu(y, inplace=True)


class CifarResNet14(nn.Module):
    """Maps normalized images (b, 3, h, w) to logits."""

    def __init__(self, name, width, codes):
        super().__init__()

        def attention(features):
            if name == "se_resnet14":
                return SqueezeExcitation(features)
            return EncodingAttention(features, codes) if name == "encnet14" else None

        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.stem_norm = nn.BatchNorm2d(width)
        self.blocks, channels = nn.ModuleList(), width
        for stage in range(3):
            for block in range(2):
                planes, stride = width * 2**stage, 2 if stage and not block else 1
                self.blocks.append(Block(channels, planes, stride, attention(planes)))
                channels = planes
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, CIFAR10.num_classes)

    def forward(self, images):
        x = F.relu(self.stem_norm(self.stem(images)), inplace=True)
        for block in self.blocks:
            x = block(x)
        return self.linear(F.relu(self.norm(x), inplace=True).mean((2, 3)))


def network(name, width, codes, weights):
    """Returns a classifier in training mode with weights of this package.

    Args:
        name: See `encnet_jax.models.registry.CIFAR_MODELS`.
        width: Channels of the first stage.
        codes: Codewords.
        weights: Parameters as nested dicts of arrays.
    """
    classifier = CifarResNet14(name, width, codes)
    loaded = {}
    for path, values in _leaves(weights):
        values, kind = torch.tensor(values), path[-1]
        if kind == "kernel":
            order = (3, 2, 0, 1) if values.ndim == 4 else (1, 0)
            values, kind = values.permute(order), "weight"
        elif kind == "scale" and path[-2] != "encoding":
            kind = "weight"  # of a norm
        loaded[".".join([*path[:-1], kind])] = values
    missing, unexpected = classifier.load_state_dict(loaded, strict=False)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert not unexpected and all(name.endswith(statistics) for name in missing)
    return classifier.train().to(memory_format=torch.channels_last)


def _leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


class Training:
    """Training steps of a classifier on one batch in memory.

    Args:
        classifier: A classifier from `network`.
        images: uint8 (b, h, w, 3); normalized in every step.
        labels: Class indices (b,).
        rate: Learning rate.
        momentum: Momentum of SGD.
        decay: Weight decay of all parameters.
        compiled: Whether to use `torch.compile`.
    """

    def __init__(
        self, classifier, images, labels, *, rate, momentum, decay, compiled=False
    ):
        self.network = Normalized(classifier, CIFAR10)
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels).long()
        self.sgd = torch.optim.SGD(
            classifier.parameters(),
            lr=rate,
            momentum=momentum,
            weight_decay=decay,
            fused=True,
        )
        self.loss = torch.compile(self._loss, dynamic=False) if compiled else self._loss

    def logits(self):
        """Returns the logits of the batch in training mode, as a NumPy array."""
        with torch.no_grad():
            return self.network(self.images).numpy()

    def step(self):
        """Takes a step; returns the loss before the update."""
        self.sgd.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.sgd.step()
        return loss.detach()

    def candidate(self):
        """Returns the step as a candidate."""
        return Candidate(self.step, lambda loss: loss.item())

    def _loss(self):
        return F.cross_entropy(self.network(self.images), self.labels)
