"""The peers on the same weights: PyTorch as the field writes it, and adversarial-robustness-toolbox.

No JAX is imported here, so that a worker's memory is its contender's.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from scipy import stats
from torch import nn
from torch.nn import functional

from benchmarks import measure, modules, workers
from benchmarks.networks import Description


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a projection where the shape changes."""

    def __init__(self, features_in: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features_in, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.projection = self.projection_norm = None
        if stride != 1 or features != features_in:
            self.projection = nn.Conv2d(features_in, features, 1, stride, bias=False)
            self.projection_norm = nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.projection is not None and self.projection_norm is not None:
            x = self.projection_norm(self.projection(x))
        return functional.relu(y + x)


class Twin(nn.Module):
    """The network of `networks.describe`: images [N, C, H, W] in [0, 1] -> float32 logits [N, classes].

    Its modules are named as the tensors of a weights file are. Cast to bfloat16 it computes in it, but normalises the
    input and takes the mean over pixels in float32, as idrc_jax does.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.stem = nn.Conv2d(description["image_shape"][-1], 16, 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.blocks = nn.ModuleList()
        features_in = 16
        for stage, features in enumerate((16, 32, 64)):
            for block in range((description["depth"] - 2) // 6):
                self.blocks.append(Residual(features_in, features, 2 if stage and not block else 1))
                features_in = features
        self.head = nn.Linear(64, description["classes"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(description[name])[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = ((images - self.mean) / self.std).to(self.stem.weight.dtype)
        x = functional.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.float().mean((2, 3)).to(self.head.weight.dtype)).float()


def twin(weights: str, description: Description) -> Twin:
    """The PyTorch network with the weights of a file of idrc_jax."""
    model = Twin(description)
    state = {}
    for name, value in load_file(weights).items():
        module, _, leaf = name.rpartition(".")
        tensor = torch.from_numpy(value.astype(np.float32))
        if leaf == "kernel":
            tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
        state[f"{module}.{leaf}"] = tensor.contiguous()
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"Expected the twin's tensors in {weights}, got missing {missing}, unexpected {unexpected}.")
    return model


def network(weights: str, description: Description) -> nn.Module:
    """The PyTorch side of any network that `contest.Files` knows: images [N, C, H, W] in [0, 1] -> float32 logits."""
    if description["architecture"] == "torch":
        return modules.Normalised(description)
    if description["architecture"] == "denoised":
        return modules.Denoised(description, twin(weights, description))
    return twin(weights, description)


def to_bfloat16(model: nn.Module) -> None:
    """Cast every weight and statistic; the input's normalisation, or its noise level's time, stays in float32."""
    exact = ("mean", "std", "time")
    kept = [
        (part, name, value)
        for part in model.modules()
        for name, value in part.named_buffers(recurse=False)
        if name in exact
    ]
    model.to(torch.bfloat16)
    for part, name, value in kept:
        setattr(part, name, value)


def set_up(threads: int = 0) -> torch.device:
    """CUDA where there is one; else the CPU with PyTorch's own number of threads, or `threads`."""
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda")
    if threads:
        torch.set_num_threads(threads)
    return torch.device("cpu")


def describe_device(device: torch.device) -> dict[str, Any]:
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    said = {"platform": device.type, "kind": kind, "threads": torch.get_num_threads()}
    return said if device.type == "cuda" else said | {"says": torch.backends.cpu.get_cpu_capability()}


def memory(device: torch.device) -> dict[str, float]:
    """Peaks in MiB: of the process, and on CUDA of what PyTorch's allocator handed out."""
    peaks = workers.peak_memory()
    if device.type == "cuda":
        peaks["device_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peaks


def _logits(model: nn.Module, description: Description, device: torch.device) -> list[list[float]]:
    """Of the probe, without TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            return model(_first_channels(measure.probe(*description["image_shape"][1:])).to(device)).cpu().tolist()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _first_channels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class _Loop:
    model: nn.Module
    image: torch.Tensor
    classes: int
    batch: int
    channels_last: bool


class Loop:
    """The certification loop as the field writes it: repeat, add noise, classify, count on the host, batch by batch."""

    def __init__(self, count: int = 0) -> None:
        self._device = set_up(count)
        self._variants: dict[str, _Loop] = {}

    def device(self) -> dict[str, Any]:
        return describe_device(self._device)

    def prepare(
        self, name: str, *, weights: str, description: Description, dtype: str, batch: int, layout: str
    ) -> dict[str, Any]:
        """Load and warm up."""
        last = layout == "channels-last"
        order = torch.channels_last if last else torch.contiguous_format
        model = network(weights, description).eval().to(self._device).to(memory_format=order)  # pyright: ignore
        if dtype == "bfloat16":
            to_bfloat16(model)
        picture = torch.from_numpy(measure.picture(*description["image_shape"][1:]))
        image = (picture if last else picture.permute(0, 3, 1, 2).contiguous()).to(self._device)
        self._variants[name] = _Loop(model, image, description["classes"], batch, last)
        rate = measure.calibrate(lambda samples: self.turn(name, samples), batch)
        facts = {"batch": batch, "devices": 1 if self._device.type == "cuda" else torch.get_num_threads()}
        logits = _logits(model, description, self._device)
        return {"rate": rate, "stride": batch, "logits": logits, "facts": facts}

    def turn(self, name: str, samples: int) -> float:
        """Seconds for so many samples."""
        one = self._variants[name]
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        counts = self._counts(one, samples)
        seconds = time.perf_counter() - start
        if counts.sum() != samples:
            raise RuntimeError(f"Expected {samples} votes, got {counts}.")
        return seconds

    def certify(self, name: str, n: int) -> float:
        """Seconds for one image's certificate: 100 + n samples and the bound."""
        one = self._variants[name]
        start = time.perf_counter()
        chosen = int(self._counts(one, measure.N0).argmax())
        k = int(self._counts(one, n)[chosen])
        lower = stats.beta.ppf(measure.ALPHA, k, n - k + 1) if k else 0.0
        _ = measure.SIGMA * stats.norm.ppf(lower)
        return time.perf_counter() - start

    def memory(self) -> dict[str, float]:
        return memory(self._device)

    @torch.no_grad()
    def _counts(self, one: _Loop, n: int) -> np.ndarray:
        counts = np.zeros(one.classes, np.int64)
        left = n
        while left > 0:
            taken = min(one.batch, left)
            batch = one.image.repeat(taken, 1, 1, 1)
            if one.channels_last:
                batch = batch.permute(0, 3, 1, 2)
            votes = one.model(batch + measure.SIGMA * torch.randn_like(batch)).argmax(1)
            counts += np.bincount(votes.cpu().numpy(), minlength=one.classes)
            left -= taken
        return counts


class Toolbox:
    """adversarial-robustness-toolbox's `PyTorchRandomizedSmoothing.certify`."""

    def __init__(self, count: int = 0) -> None:
        import art.estimators.certification.randomized_smoothing as smoothing

        self._smoothing = smoothing.PyTorchRandomizedSmoothing
        self._device = set_up(count)
        self._variants: dict[str, tuple[Any, np.ndarray, int]] = {}

    def device(self) -> dict[str, Any]:
        return describe_device(self._device)

    def prepare(
        self, name: str, *, weights: str, description: Description, dtype: str, batch: int, layout: str
    ) -> dict[str, Any]:
        """Load and warm up; it knows float32 and contiguous images only."""
        size = description["image_shape"][0]
        model = twin(weights, description).eval()
        smoothed = self._smoothing(
            model=model,
            loss=nn.CrossEntropyLoss(),
            input_shape=(3, size, size),
            nb_classes=10,
            sample_size=measure.N0,
            scale=measure.SIGMA,
            alpha=measure.ALPHA,
            device_type="gpu" if self._device.type == "cuda" else "cpu",
        )
        image = _first_channels(measure.picture(size)).numpy()
        self._variants[name] = (smoothed, image, batch)
        # The least that a turn asks for is as much again as the selection.
        stride = -(-2 * measure.N0 // batch) * batch
        rate = measure.calibrate(lambda samples: self.turn(name, samples), stride)
        facts = {"batch": batch, "devices": 1 if self._device.type == "cuda" else torch.get_num_threads()}
        logits = _logits(model.to(self._device), description, self._device)
        return {"rate": rate, "stride": stride, "logits": logits, "facts": facts}

    def turn(self, name: str, samples: int) -> float:
        """Seconds for so many samples, 100 of which are the selection's."""
        return self.certify(name, samples - measure.N0)

    def certify(self, name: str, n: int) -> float:
        """Seconds for one image's certificate: 100 + n samples and the bound."""
        smoothed, image, batch = self._variants[name]
        start = time.perf_counter()
        smoothed.certify(image, n=n, batch_size=batch)
        return time.perf_counter() - start

    def memory(self) -> dict[str, float]:
        return memory(self._device)


@dataclass(frozen=True)
class _Trainer:
    model: nn.Module
    optimiser: torch.optim.Optimizer
    images: torch.Tensor
    labels: torch.Tensor
    batch: int
    autocast: bool


class Training:
    """A plain PyTorch training loop under noise: data set in memory, crop, flip, noise, SGD with momentum."""

    def __init__(self, count: int = 0) -> None:
        self._device = set_up(count)
        self._variants: dict[str, _Trainer] = {}

    def device(self) -> dict[str, Any]:
        return describe_device(self._device)

    def prepare(
        self, name: str, *, weights: str, description: Description, dtype: str, batch: int, layout: str
    ) -> dict[str, Any]:
        """Load and warm up; `dtype` is "float32", "autocast" (float32 weights) or "bfloat16" (all of it)."""
        size = description["image_shape"][0]
        model = twin(weights, description).to(self._device).to(memory_format=torch.channels_last)  # pyright: ignore
        if dtype == "bfloat16":
            to_bfloat16(model)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=dtype == "autocast"):
            logits = _logits(model.train(), description, self._device)
        images, labels = measure.training_set(size)
        self._variants[name] = _Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=measure.LEARNING_RATE, momentum=0.9, weight_decay=1e-4),
            torch.from_numpy(images).to(self._device),
            torch.from_numpy(labels).long().to(self._device),
            batch,
            autocast=dtype == "autocast",
        )
        rate = measure.calibrate(lambda samples: self.turn(name, samples), batch)
        facts = {"batch": batch, "devices": 1 if self._device.type == "cuda" else torch.get_num_threads()}
        return {"rate": rate, "stride": batch, "logits": logits, "facts": facts}

    def turn(self, name: str, samples: int) -> float:
        """Seconds for the steps that take so many images."""
        one = self._variants[name]
        losses = []
        start = time.perf_counter()
        order = torch.randperm(len(one.images), device=self._device)
        for step in range(samples // one.batch):
            position = step * one.batch % (len(order) - one.batch)
            losses.append(self._step(one, order[position : position + one.batch]))
        losses = torch.stack(losses).cpu().numpy()
        seconds = time.perf_counter() - start
        measure.require_finite(losses)
        return seconds

    def memory(self) -> dict[str, float]:
        return memory(self._device)

    def _step(self, one: _Trainer, chosen: torch.Tensor) -> torch.Tensor:
        images = _augment(one.images[chosen].float().div_(255))
        noisy = (images + measure.SIGMA * torch.randn_like(images)).permute(0, 3, 1, 2)  # channels last
        with torch.autocast(self._device.type, torch.bfloat16, enabled=one.autocast):
            logits = one.model(noisy)
        loss = functional.cross_entropy(logits.float(), one.labels[chosen])
        one.optimiser.zero_grad()
        loss.backward()
        one.optimiser.step()
        return loss.detach()


def _augment(images: torch.Tensor) -> torch.Tensor:
    """Random crop (pad 4) and flip of a batch [B, H, W, C]."""
    batch, height, width, _ = images.shape
    padded = functional.pad(images, (0, 0, 4, 4, 4, 4))
    device = images.device
    rows = torch.randint(9, (batch, 1), device=device) + torch.arange(height, device=device)
    columns = torch.randint(9, (batch, 1), device=device) + torch.arange(width, device=device)
    flipped = torch.rand(batch, 1, device=device) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    each = torch.arange(batch, device=device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]
