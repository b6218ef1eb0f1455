"""Training of the CIFAR-10 classifiers in plain PyTorch, by the same recipe.

An independent reference: network, initialization, crops, gradients and schedule share
no code with this package. On a GPU, steps run in bfloat16 by autocast and as one CUDA
graph, as launching such small kernels one by one leaves the GPU idle.
"""

import math
import time

import torch
from ml_collections import ConfigDict
from torch.nn import functional as F

from benchmarks.torch_cifar import CifarResNet14
from benchmarks.torch_encnet import Encoding
from benchmarks.torch_training import Normalized
from encnet_jax.data.array_dataset import ArrayDataset
from encnet_jax.data.dataset_info import CIFAR10

_WARMUP_STEPS = 3  # before capture: they create momenta and select kernels


class Images:
    """A split on the device.

    Args:
        dataset: The split in memory.
        device: The device.
    """

    def __init__(self, dataset: ArrayDataset, device: torch.device):
        self.images = torch.from_numpy(dataset.images).to(device)
        self.labels = torch.from_numpy(dataset.labels).long().to(device)

    def cropped(self, indices: torch.Tensor, pad: int) -> torch.Tensor:
        """Pads images with black, then crops and flips them at random."""
        count, size = len(indices), self.images.shape[1]
        images = F.pad(self.images[indices], (0, 0, pad, pad, pad, pad))
        device = images.device
        offsets = torch.arange(size, device=device)
        starts = torch.randint(0, 2 * pad + 1, (2, count, 1), device=device)
        flipped = torch.rand(count, 1, device=device) < 0.5
        rows = starts[0] + offsets
        columns = starts[1] + torch.where(flipped, offsets.flip(0), offsets)
        batch = torch.arange(count, device=device)[:, None, None]
        return images[batch, rows[:, :, None], columns[:, None]]


class Step:
    """A training step on the batch in the buffers `images` and `labels`."""

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
        elif self.count < _WARMUP_STEPS:
            # On a side stream, as CUDA graphs require for warm-up.
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
    config: ConfigDict, datasets: tuple[ArrayDataset, ArrayDataset]
) -> tuple[list[tuple[int, float]], float]:
    """Trains one network by a configuration.

    Returns:
        (step, test error) at each evaluation, and the seconds per step including crop
        and flip.
    """
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Normalized(create_network(config), CIFAR10)
    network.to(device, memory_format=torch.channels_last)
    data, test = (Images(dataset, device) for dataset in datasets)
    step = Step(network, data, config)
    size, batch = len(data.images), config.batch_size
    curve, seconds, order = [], 0.0, torch.empty(0)
    start = time.perf_counter()
    for index in range(config.total_steps):
        if len(order) < batch:  # drop the remainder of the epoch
            order = torch.randperm(size, device=device)
        indices, order = order[:batch], order[batch:]
        step.images.copy_(data.cropped(indices, config.data.pad))
        step.labels.copy_(data.labels[indices])
        progress = index / config.total_steps
        step.rate.fill_(config.learning_rate * (1 + math.cos(math.pi * progress)) / 2)
        step()
        done = index + 1
        if done % config.eval_every == 0 or done == config.total_steps:
            found = error(network, test, config.evaluation.batch_size)
            seconds += time.perf_counter() - start
            curve.append((done, found))
            print(f"step {done}: error {100 * found:.2f}", flush=True)
            start = time.perf_counter()
    return curve, seconds / config.total_steps


def create_network(config: ConfigDict) -> CifarResNet14:
    """Returns a network with PyTorch's initialization; the paper's for encodings."""
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
    """Returns the classification error on a split, in float32."""
    network.eval()
    wrong = 0
    cudnn = torch.backends.cudnn
    # By default it multiplies float32 in TF32.
    with cudnn.flags(enabled=True, benchmark=cudnn.benchmark, allow_tf32=False):
        for images, labels in zip(data.images.split(batch), data.labels.split(batch)):
            wrong += int((network(images).argmax(1) != labels).sum())
    network.train()
    return wrong / len(data.labels)
