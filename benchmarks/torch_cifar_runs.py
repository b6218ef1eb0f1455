"""The classifiers of CIFAR-10 trained in plain PyTorch, by the same recipe as ours.

A check of ours by other code: network, initial weights, crops, gradients and schedule
share none with it. On a GPU in bfloat16 by autocast, as one CUDA graph a step: launched
one by one, kernels this small leave the card idle.
"""

import math
import time

import torch
from ml_collections import ConfigDict
from torch.nn import functional as F

from benchmarks.torch_cifar import CifarResNet14
from benchmarks.torch_encnet import Encoding
from benchmarks.torch_training import Normalized
from encnet_jax.data.dataset_info import CIFAR10
from encnet_jax.data.datasets import Dataset

_EAGER = 3  # steps before a graph is recorded: they make momenta and choose kernels


class Images:
    """A split on the device.

    Args:
        dataset: With `images` and `labels` in memory.
        device: Where.
    """

    def __init__(self, dataset: Dataset, device: torch.device):
        self.images = torch.from_numpy(dataset.images).to(device)
        self.labels = torch.from_numpy(dataset.labels).long().to(device)

    def cropped(self, numbers: torch.Tensor, pad: int) -> torch.Tensor:
        """Returns some of the images with a black border, cropped and mirrored."""
        count, size = len(numbers), self.images.shape[1]
        images = F.pad(self.images[numbers], (0, 0, pad, pad, pad, pad))
        device = images.device
        line = torch.arange(size, device=device)
        starts = torch.randint(0, 2 * pad + 1, (2, count, 1), device=device)
        mirrored = torch.rand(count, 1, device=device) < 0.5
        rows = starts[0] + line
        columns = starts[1] + torch.where(mirrored, line.flip(0), line)
        which = torch.arange(count, device=device)[:, None, None]
        return images[which, rows[:, :, None], columns[:, None]]


class Step:
    """Forward, backward, update on the batch that stands in `images` and `labels`."""

    def __init__(self, network: Normalized, data: Images, config: ConfigDict):
        self.images = data.images[: config.batch_size].clone()
        self.labels = data.labels[: config.batch_size].clone()
        rate = float(config.learning_rate)
        self.rate = torch.tensor(rate, device=self.images.device)
        self.network = network
        self.sgd = torch.optim.SGD(
            network.parameters(),
            lr=self.rate,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        self.count = 0
        self.graph = None

    def __call__(self) -> None:
        """Takes one step."""
        if self.graph is not None:
            self.graph.replay()
        elif self.images.device.type == "cpu":
            self._take()
        elif self.count < _EAGER:
            # Not on the default stream, on which nothing can be recorded.
            stream, default = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(default)
            with torch.cuda.stream(stream):
                self._take()
            default.wait_stream(stream)
        else:
            self.graph = torch.cuda.CUDAGraph()
            self.sgd.zero_grad(set_to_none=True)
            with torch.cuda.graph(self.graph):
                self._take()
            self.graph.replay()
        self.count += 1

    def _take(self) -> None:
        self.sgd.zero_grad(set_to_none=True)
        kind = self.images.device.type
        with torch.autocast(
            kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False
        ):
            loss = F.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        self.sgd.step()


def train(
    config: ConfigDict, datasets: tuple[Dataset, Dataset]
) -> tuple[list[tuple[int, float]], float]:
    """Trains one network as `config` says.

    Returns:
        The error on test after each of the steps where it is scored, and the seconds a
        step takes, crop and mirror in it.
    """
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Normalized(created(config), CIFAR10)
    network.to(device, memory_format=torch.channels_last)
    data, test = (Images(dataset, device) for dataset in datasets)
    step = Step(network, data, config)
    size, batch = len(data.images), config.batch_size
    curve, seconds, numbers = [], 0.0, torch.empty(0)
    start = time.perf_counter()
    for number in range(config.total_steps):
        if len(numbers) < batch:  # what is left over is dropped
            numbers = torch.randperm(size, device=device)
        taken, numbers = numbers[:batch], numbers[batch:]
        step.images.copy_(data.cropped(taken, config.data.pad))
        step.labels.copy_(data.labels[taken])
        progress = number / config.total_steps
        step.rate.fill_(config.learning_rate * (1 + math.cos(math.pi * progress)) / 2)
        step()
        done = number + 1
        if done % config.eval_every == 0 or done == config.total_steps:
            found = error(network, test, config.evaluation.batch_size)
            seconds += time.perf_counter() - start
            curve.append((done, found))
            print(f"step {done}: error {100 * found:.2f}", flush=True)
            start = time.perf_counter()
    return curve, seconds / config.total_steps


def created(config: ConfigDict) -> CifarResNet14:
    """Returns a network with PyTorch's initial weights, and the paper's encodings."""
    model = config.model
    network = CifarResNet14(model.name, model.width, model.num_codes)
    for layer in network.modules():
        if isinstance(layer, Encoding):
            bound = layer.codewords.numel() ** -0.5
            torch.nn.init.uniform_(layer.codewords, -bound, bound)
            torch.nn.init.uniform_(layer.scale, -1, 0)
    return network.train()


@torch.no_grad()
def error(network: Normalized, data: Images, batch: int) -> float:
    """Returns the share of a split that is taken for another class, in float32."""
    network.eval()
    wrong = 0
    for images, labels in zip(data.images.split(batch), data.labels.split(batch)):
        wrong += int((network(images).argmax(1) != labels).sum())
    network.train()
    return wrong / len(data.labels)
