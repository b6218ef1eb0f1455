"""PyTorch-Encoding's evaluation in windows, in plain PyTorch."""

import functools
import math

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.windows import BASE, CROP
from encnet_jax.data.dataset_info import ADE20K
from encnet_jax.metrics import segmentation_metrics


class TorchEvaluation:
    """The protocol in plain PyTorch: one window and its mirror image at a time."""

    def __init__(self, model, scales, device="cpu"):
        self.model, self.scales, self.device = model, scales, device
        self.mean = torch.tensor(ADE20K.mean, device=device)[:, None, None]
        self.std = torch.tensor(ADE20K.std, device=device)[:, None, None]

    def pad(self, x):
        bottom, right = (max(CROP - size, 0) for size in x.shape[1:])
        black = (-self.mean / self.std).expand(3, 1, 1)
        result = black.expand(3, x.shape[1] + bottom, x.shape[2] + right).clone()
        result[:, : x.shape[1], : x.shape[2]] = x
        return result

    def window(self, x):
        crop = self.pad(x)[None].contiguous(memory_format=torch.channels_last)
        logits = self.model(crop) + self.model(crop.flip(3)).flip(3)
        return logits[0, :, : x.shape[1], : x.shape[2]].exp()

    def __call__(self, image):
        x = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255
        x = (x - self.mean) / self.std
        height, width = x.shape[1:]
        zeros = functools.partial(torch.zeros, device=self.device)
        total = zeros(150, height, width)
        for scale in self.scales:
            long = math.ceil(BASE * scale)
            size = [int(s * long / max(height, width) + 0.5) for s in (height, width)]
            options = dict(mode="bilinear", align_corners=True)
            y = self.pad(F.interpolate(x[None], size, **options)[0])
            summed, count = zeros(150, *y.shape[1:]), zeros(y.shape[1:])
            stride = int(CROP * 2 / 3)
            rows, columns = (math.ceil((s - CROP) / stride) + 1 for s in y.shape[1:])
            for i in range(rows):
                for j in range(columns):
                    top, left = i * stride, j * stride
                    box = np.s_[..., top : top + CROP, left : left + CROP]
                    summed[box] += self.window(y[box])
                    count[box] += 1
            averaged = (summed / count)[:, : size[0], : size[1]]
            total += F.interpolate(averaged[None], (height, width), **options)[0]
        return total.argmax(0).cpu().numpy()

    def run(self, dataset):
        matrix = np.zeros(150 * 150, np.int64)
        for example in dataset.examples:
            cells = example.labels.astype(np.int64) * 150 + self(example.image)
            matrix += np.bincount(cells.ravel(), minlength=150 * 150)
        return segmentation_metrics(matrix.reshape(150, 150))


class LogitsOnly(torch.nn.Module):
    """Maps windows to logits, under autocast to bfloat16."""

    def __init__(self, network, device):
        super().__init__()
        self.network, self.device_type = network, torch.device(device).type

    def forward(self, windows):
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.network(windows)[0].float()
