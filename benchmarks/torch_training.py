"""Training and inference of EncNet in plain PyTorch, the baseline of the benchmarks.

Uses channels_last, autocast to bfloat16 (or float32) and, optionally, `torch.compile`,
but no custom kernels.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import Candidate
from benchmarks.torch_encnet import EncNet, Encoding
from benchmarks.torch_evaluation import LogitsOnly, TorchEvaluation
from encnet_jax.data.dataset_info import ADE20K, IGNORE_LABEL
from encnet_jax.models.resnet import RESNETS, stage_strides_and_dilations

CLASSES = ADE20K.num_classes


class TrainedEncNet(EncNet):
    """EncNet on any bottleneck ResNet, with auxiliary head and SE loss.

    Maps normalized images (b, 3, h, w) to logits of their size, SE logits and, in
    training, the logits of the auxiliary head.
    """

    def __init__(self, backbone, classes=CLASSES):
        super().__init__(classes)
        spec, channels = RESNETS[backbone], 128
        strides_and_dilations = stage_strides_and_dilations(8, spec.dilated)
        for index, (blocks, settings) in enumerate(
            zip(spec.blocks, strides_and_dilations)
        ):
            planes = 64 * 2**index
            stage = self.pretrained._stage(channels, planes, blocks, *settings)
            setattr(self.pretrained, f"layer{index + 1}", stage)
            channels = 4 * planes
        self.auxlayer = nn.Module()
        self.auxlayer.conv5 = nn.Sequential(
            nn.Conv2d(1024, 256, 3, 1, 1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(256, classes, 1),
        )

    def forward(self, images):
        trunk, context = self.pretrained, self.head.encmodule
        x = F.relu(trunk.bn1(trunk.conv1(images)), inplace=True)
        x = trunk.layer2(trunk.layer1(F.max_pool2d(x, 3, 2, 1)))
        stage3 = trunk.layer3(x)
        x = self.head.conv5(trunk.layer4(stage3))
        encoded = context.encoding(x).mean(1)
        x = F.relu(x + x * context.fc(encoded)[..., None, None])
        aux_logits = None
        if self.training:
            aux_logits = self.upsample(self.auxlayer.conv5(stage3), images)
        logits = self.upsample(self.head.conv6(x), images)
        return logits, context.selayer(encoded), aux_logits

    def upsample(self, logits, images):
        return F.interpolate(
            logits, images.shape[2:], mode="bilinear", align_corners=True
        )


class Normalized(nn.Module):
    """A network that normalizes its input, uint8 (b, h, w, 3)."""

    def __init__(self, network, info=ADE20K):
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(v)[:, None, None] for v in (info.mean, info.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", mean / std)

    def forward(self, images):
        # (b, 3, h, w) in channels_last memory format.
        images = images.permute(0, 3, 1, 2).float()
        return self.network(images * self.scale - self.offset)


class Labels(Normalized):
    """Maps images, uint8 (b, h, w, 3), to labels, uint8 (b, h, w)."""

    def forward(self, images):
        logits, _, _ = super().forward(images)
        return logits.argmax(1).byte()


class Torch:
    """Runs PyTorch on a device, in a dtype, compiled or eager."""

    def __init__(self, device, compiled, dtype=torch.bfloat16):
        self.device, self.compiled, self.dtype = torch.device(device), compiled, dtype
        # Sizes are static: let cuDNN choose the fastest kernels.
        torch.backends.cudnn.benchmark = True

    def candidate(self, work, backbone, images, labels):
        """Returns training or inference of a new EncNet.

        Args:
            work: `"training"` or `"inference"`.
            backbone: A bottleneck ResNet, or `"tiny"`.
            images: uint8 (b, h, w, 3).
            labels: int32 (b, h, w).
        """
        network = TrainedEncNet(backbone)
        if work == "training":
            return self.training(network, images, labels)
        return self.inference(network, images)

    def training(self, network, images, labels):
        """Returns training steps by SGD with the losses of the paper."""
        network.train().to(self.device, memory_format=torch.channels_last)
        images, labels = (torch.from_numpy(a).to(self.device) for a in (images, labels))
        normalized = Normalized(network).to(self.device)
        head = [p for n, p in network.named_parameters() if "pretrained" not in n]
        groups = [
            {"params": network.pretrained.parameters(), "lr": 0.01},
            {"params": head, "lr": 0.1},
        ]
        sgd = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)
        loss = self._program(lambda images, labels: _loss(normalized(images), labels))

        def step():
            sgd.zero_grad(set_to_none=True)
            with self._autocast():
                total = loss(images, labels.long())
            total.backward()
            sgd.step()
            return total

        return Candidate(step, self.wait)

    def inference(self, network, images):
        """Returns the prediction of the labels of whole images."""
        network.eval().to(self.device, memory_format=torch.channels_last)
        labels = self._program(Labels(network).to(self.device))
        images = torch.from_numpy(images).to(self.device)

        def call():
            with torch.inference_mode(), self._autocast():
                return labels(images)

        return Candidate(call, self.wait)

    def encoding(self, *, batch, pixels, channels):
        """Returns the encoding layer: forward, and with gradients."""
        layer = Encoding(channels, 32).to(self.device)
        size = (batch, channels, pixels, pixels)
        x = torch.randn(size, device=self.device, dtype=self.dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        program = self._program(layer)

        def forward():
            with torch.inference_mode(), self._autocast():
                return program(x)

        def gradients():
            with self._autocast():
                result = program(x)
            return torch.autograd.grad(
                result, [x, *layer.parameters()], torch.ones_like(result)
            )

        return Candidate(forward, self.wait), Candidate(gradients, self.wait)

    def windows(self, backbone, scales):
        """Returns a function that evaluates `windows.Images` with a new EncNet."""
        network = TrainedEncNet(backbone).eval()
        network.to(self.device, memory_format=torch.channels_last)
        network = LogitsOnly(network, self.device)
        evaluation = TorchEvaluation(network, scales, self.device)

        def run(dataset):
            with torch.inference_mode():
                return evaluation.run(dataset)

        return run

    def start_peak(self):
        """Resets the peak memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self):
        """Returns the peak memory, or None where it is not tracked."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return None

    def wait(self, result):
        """Returns a result after synchronizing the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def _program(self, function):
        return torch.compile(function, dynamic=False) if self.compiled else function

    def _autocast(self):
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)


def _loss(output, labels):
    logits, se_logits, aux_logits = output
    presence = torch.zeros(len(labels), 256, device=labels.device)
    presence = presence.scatter(1, labels.flatten(1), 1.0)[:, : se_logits.shape[1]]
    return (
        F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_LABEL)
        + 0.2 * F.binary_cross_entropy_with_logits(se_logits.float(), presence)
        + 0.2 * F.cross_entropy(aux_logits.float(), labels, ignore_index=IGNORE_LABEL)
    )


def version(platform):
    """Returns the torch device for a JAX platform, and the version.

    Returns:
        The device, or None, and the version or the reason why there is none.
    """
    known = f"{torch.__version__}, CUDA {torch.version.cuda}"
    if platform == "cpu":
        return "cpu", known
    if platform == "gpu" and torch.cuda.is_available():
        return "cuda", f"{known}, cuDNN {torch.backends.cudnn.version()}"
    return None, f"{known}: no {platform} available"
