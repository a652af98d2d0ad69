"""idrc_jax as a contender: certification and training by the path that the commands take.

Each class lives in a worker of its own (`workers.Worker`) and knows its variants by name.
"""

import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from benchmarks import measure, networks, workers
from idrc_jax import certification, data, models, sampling, training
from idrc_jax.certificates import schemes
from idrc_jax.certificates.sampling_plans import Fixed
from idrc_jax.certification import in_memory
from idrc_jax.interop import diffusers, layouts, torch_modules
from idrc_jax.models import denoised_classifier, diffusion
from idrc_jax.sampling import devices, implementation_choice, random_keys
from idrc_jax.training import loop, steps, training_kernel

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
SCHEME = schemes.Gaussian(sigma=measure.SIGMA)
_PRECISE = "highest"
_SAMPLES = 10_000_000  # of a run of the commands: enough for them to choose with care
_SLOTS = 64  # images that a dispatch of the commands holds


def set_up(count: int = 0) -> Mesh:
    """The devices as the commands make them: all of them, or `count`."""
    devices.configure_cpu(count or measure.cores())
    return devices.mesh(count)


def describe_device(mesh: Mesh) -> dict[str, Any]:
    device = mesh.devices.flat[0]
    return {"platform": device.platform, "kind": device.device_kind, "devices": mesh.size}


def memory(mesh: Mesh) -> dict[str, float]:
    """Peaks in MiB: of the process, and on an accelerator of the first device."""
    peaks = workers.peak_memory()
    on_device = (mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return peaks | ({"device_mib": round(on_device / 2**20, 1)} if on_device else {})


class Host:
    """What a command asks of JAX beside the contest: the device, weights files, the agreement of types."""

    def __init__(self) -> None:
        self._mesh = set_up()

    def device(self) -> dict[str, Any]:
        return describe_device(self._mesh)

    def write_weights(self, path: str, description: networks.Description, seed: int = 0) -> None:
        """A file of random values: speed does not depend on them, but every one of them acts.

        BatchNorm's statistics and scales are away from 0 and 1; each block adds a little to its input, so that logits
        stay of moderate size at every depth.
        """
        _, params, stats = models.abstract(description, dtype="float32")
        generator = np.random.default_rng(seed)
        tensors = {
            name: _random(name, leaf.shape, generator).astype(np.float32)
            for name, leaf in sorted((params | stats).items())
        }
        models.save_weights(Path(path), tensors, description)

    def write_denoised(self, path: str, description: networks.Description) -> networks.Description:
        """A file of a committed denoiser's tensors as diffusers names them, for the PyTorch side.

        Returns:
          The description with what that side needs: the file, the network's settings, the fixed noise level's time.
        """
        denoiser = models.load_denoiser(CHECKPOINTS / description["denoiser"], kernel="xla")
        tensors = {diffusers.their_name(name): layouts.to_torch(np.array(one)) for name, one in denoiser.params.items()}
        save_file(tensors, path)
        unet = denoiser.description["unet"]
        levels = len(unet["widths"])
        settings = {
            "sample_size": denoiser.image_shape[0], "in_channels": unet["channels"],
            "out_channels": unet["channels_out"], "block_out_channels": unet["widths"],
            "layers_per_block": unet["blocks"], "norm_num_groups": unet["groups"], "norm_eps": 1e-6,
            "down_block_types": ["DownBlock2D"] * levels, "up_block_types": ["UpBlock2D"] * levels,
            "add_attention": unet["middle_attention"], "flip_sin_to_cos": False, "freq_shift": 1.0,
        }  # fmt: skip
        level = {"time": denoiser.schedule.time(SCHEME.sigma), "signal": diffusion.signal_of(SCHEME.sigma)}
        return description | level | {"unet": settings, "unet_weights": path}

    def agreement(self, weights: str, folder: str, count: int = 10_000) -> dict[str, Any]:
        """How often bfloat16 and float32 name the same class on noisy images, one copy each."""
        full = models.load_classifier(weights, dtype="float32")
        half = models.load_classifier(weights, dtype="bfloat16")
        images, labels, what = images_to_classify(folder, count, full.image_shape[0])
        noise = np.random.default_rng(0)
        forwards = [jax.jit(one.apply_fn) for one in (full, half)]
        votes: list[list[np.ndarray]] = [[], []]
        batch = min(100, len(images))
        for start in range(0, len(images) - batch + 1, batch):
            clean = images[start : start + batch]
            noisy = jnp.asarray(clean + np.float32(SCHEME.sigma) * noise.standard_normal(clean.shape, np.float32))
            for one, forward, params in zip(votes, forwards, (full.params, half.params), strict=True):
                one.append(np.asarray(forward(params, noisy)).argmax(-1))
        first, second = (np.concatenate(one) for one in votes)
        found = {"images": what, "count": len(first), "sigma": SCHEME.sigma, "agree": float(np.mean(first == second))}
        if labels is not None:
            truth = labels[: len(first)]
            found |= {"accuracy_float32": float(np.mean(first == truth))}
            found |= {"accuracy_bfloat16": float(np.mean(second == truth))}
        return found


def _random(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if name.endswith("norm2.scale"):
        return generator.uniform(0.1, 0.4, shape)
    if name.endswith(("var", "scale")):
        return generator.uniform(0.5, 1.5, shape)
    if name.endswith(("mean", "bias")):
        return generator.normal(0.0, 0.2, shape)
    return generator.normal(0.0, np.sqrt(2 / np.prod(shape[:-1])), shape)


def images_to_classify(folder: str, count: int, size: int) -> tuple[np.ndarray, np.ndarray | None, str]:
    if not folder:
        return networks.images(count, size, seed=1), None, "smooth random images"
    test_set = data.load("cifar10", "test", directory=folder)
    return data.to_unit(test_set.images[:count]), test_set.labels[:count], "CIFAR-10 test images"


def load(weights: str, description: networks.Description, *, dtype: str, kernel: str) -> models.Classifier:
    """Any network that `contest.Files` knows."""
    if description["architecture"] == "torch":
        from benchmarks import modules  # needs PyTorch

        if dtype != "float32":
            raise ValueError(f"Expected float32 of a PyTorch module, got {dtype}: from_torch knows no other.")
        shape = tuple(description["image_shape"])
        about = {name: description[name] for name in ("mean", "std")}
        classifier = torch_modules.from_torch(modules.build(description), image_shape=shape, **about)
        return classifier.implementations[-1] if kernel == "xla" else classifier
    classifier = models.load_classifier(weights, dtype=dtype, kernel=kernel)
    if description["architecture"] != "denoised":
        return classifier
    denoiser = models.load_denoiser(CHECKPOINTS / description["denoiser"], dtype=dtype, kernel=kernel)
    return denoised_classifier.denoised(classifier, denoiser, sigma=SCHEME.sigma)


def choose(classifier: models.Classifier, mesh: Mesh, chunk: int, kernel: str) -> sampling.Execution:
    """What the commands would take for a kernel that is asked for; a `chunk` that is asked for stays.

    Nothing is remembered from another run.
    """
    if kernel == "xla":
        return sampling.unmeasured(classifier, mesh, chunk)
    some = mesh if mesh.size < len(jax.local_devices()) else None
    with tempfile.TemporaryDirectory() as folder:
        return implementation_choice.choose(
            classifier, SCHEME, samples=_SAMPLES, mesh=some, chunk=chunk, folder=Path(folder)
        )


@dataclass(frozen=True)
class _Certifier:
    execution: sampling.Execution
    image: np.ndarray


class Sampling:
    """Votes of one noisy image at a time."""

    def __init__(self, count: int = 0) -> None:
        self._mesh = set_up(count)
        self._variants: dict[str, _Certifier] = {}
        self._logits: dict[tuple[str, ...], list[list[float]]] = {}

    def device(self) -> dict[str, Any]:
        return describe_device(self._mesh)

    def prepare(
        self,
        name: str,
        *,
        weights: str,
        description: networks.Description,
        dtype: str,
        batch: int,
        kernel: str = "auto",
    ) -> dict[str, Any]:
        """Load, compile and warm up; `batch` is the chunk a device takes (0: the default)."""
        execution = choose(load(weights, description, dtype=dtype, kernel=kernel), self._mesh, batch, kernel)
        classifier = execution.classifier
        height, _, channels = classifier.image_shape
        picture = measure.picture(height, channels)
        self._variants[name] = _Certifier(execution.placed(), picture)
        key = (weights, str(description), dtype, kernel)
        if key not in self._logits:
            with jax.default_matmul_precision(_PRECISE):
                logits = jax.jit(classifier.apply_fn)(classifier.params, measure.probe(height, channels))
            self._logits[key] = np.asarray(logits).tolist()
        rate = measure.calibrate(lambda samples: self.turn(name, samples), execution.stride)
        facts = {
            "batch": execution.chunk,
            "devices": execution.mesh.size,
            "kernel": classifier.kernel,
            "rates": execution.rates,
        }
        return {"rate": rate, "stride": execution.stride, "logits": self._logits[key], "facts": facts}

    def turn(self, name: str, samples: int) -> float:
        """Seconds that the votes of so many samples take, read by the host."""
        one = self._variants[name]
        start = time.perf_counter()
        votes = sampling.dispatch_votes(
            one.execution, SCHEME, np.repeat(one.image, _SLOTS, axis=0), np.full(_SLOTS, SCHEME.sigma),
            indices=np.zeros(_SLOTS), first=0, n=np.array([samples] + [0] * (_SLOTS - 1)), key=random_keys.root(0),
        )  # fmt: skip
        counts = np.asarray(votes).sum(axis=(0, 1))
        seconds = time.perf_counter() - start
        if counts[-1] or counts.sum() != samples:
            raise RuntimeError(f"Expected {samples} votes for classes, got {counts}.")
        return seconds

    def certify(self, name: str, n: int) -> float:
        """Seconds for one image's certificate: 100 + n samples, the radius included."""
        one = self._variants[name]
        start = time.perf_counter()
        settings = certification.Settings(Fixed(n=n, n0=measure.N0))
        list(in_memory.certify_by(one.execution, SCHEME, one.image, settings, indices=np.array([0])))
        return time.perf_counter() - start

    def memory(self) -> dict[str, float]:
        return memory(self._mesh)


@dataclass
class _Trainer:
    run: Any
    state: steps.State
    images: jax.Array
    labels: jax.Array
    order: jax.Array
    done: int  # steps
    recipe: training.Recipe


class Training:
    """Training steps, dispatched as `training.train` does."""

    def __init__(self, count: int = 0) -> None:
        self._count = count
        self._variants: dict[str, _Trainer] = {}

    def device(self) -> dict[str, Any]:
        return describe_device(self._mesh)

    def prepare(self, name: str, *, weights: str, description: networks.Description, dtype: str, batch: int) -> dict:
        """Compile and warm up, from the weights in the file. The first call decides about the devices, by its type."""
        description = description | {"dtype": dtype}
        if not self._variants:
            self._set_up(description, batch)
        network = training.network_on(self._mesh, description)
        _, params, stats = models.abstract(description, dtype=dtype)
        tensors = load_file(weights)
        params, stats = ({key: jnp.asarray(tensors[key]) for key in group} for group in (params, stats))
        with jax.default_matmul_precision(_PRECISE):
            logits, _ = jax.jit(network.train)(params, stats, measure.probe(description["image_shape"][0]))
        recipe = training.Recipe(batch=batch, lr=measure.LEARNING_RATE)
        optimiser = recipe.optimiser(measure.TRAINING_IMAGES // batch)
        whole = devices.replicated(self._mesh)
        state = steps.State(params, stats, optimiser.init(params), jnp.zeros((), jnp.int32))
        step = training.make_step(network, recipe, SCHEME, optimiser, 0, self._mesh)
        images, labels = measure.training_set(description["image_shape"][0])
        self._variants[name] = _Trainer(
            loop.dispatches(step, on_cpu=self._on_cpu),
            jax.device_put(state, whole),
            jax.device_put(images, whole),
            jax.device_put(labels, whole),
            self._shuffle(0, 0, measure.TRAINING_IMAGES),
            0,
            recipe,
        )
        stride = batch * self._steps
        rate = measure.calibrate(lambda samples: self.turn(name, samples), stride)
        kernel = training_kernel.kernel_on(self._mesh, description)
        facts = {"batch": batch, "devices": self._mesh.size, "kernel": kernel}
        return {"rate": rate, "stride": stride, "logits": np.asarray(logits).tolist(), "facts": facts}

    def _set_up(self, description: networks.Description, batch: int) -> None:
        fastest = training_kernel.cpu_devices(description["architecture"], description["dtype"], batch)
        self._mesh = set_up(self._count or fastest)
        self._on_cpu = devices.is_cpu()
        # Steps in one dispatch, and dispatches ahead of what the host reads.
        self._steps, self._ahead = (1, 8) if self._on_cpu else (50, 1)
        replicated = devices.replicated(self._mesh)
        self._shuffle = jax.jit(steps.epoch_order, static_argnums=(0, 2), out_shardings=replicated)

    def turn(self, name: str, samples: int) -> float:
        """Seconds for the steps that take so many images."""
        one = self._variants[name]
        pending: deque[training.Metrics] = deque()
        losses: list[float] = []

        def drain(limit: int) -> None:
            while len(pending) > limit:
                losses.extend(jax.device_get(pending.popleft()).loss)

        start = time.perf_counter()
        epoch_steps = measure.TRAINING_IMAGES // one.recipe.batch
        left = samples // one.recipe.batch
        while left:
            epoch, position = divmod(one.done, epoch_steps)
            if position == 0:
                one.order = self._shuffle(0, epoch, measure.TRAINING_IMAGES)
            count = min(self._steps, epoch_steps - position, left)
            one.state, metrics = one.run(one.state, one.order, one.images, one.labels, count=count)
            one.done += count
            left -= count
            pending.append(metrics)
            drain(self._ahead)
        drain(0)
        jax.block_until_ready(one.state)
        seconds = time.perf_counter() - start
        measure.require_finite(losses)
        return seconds

    def memory(self) -> dict[str, float]:
        return memory(self._mesh)
