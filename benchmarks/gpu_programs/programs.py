"""Every program that the commands run on a GPU, lowered by the library's own functions.

`certify` and `predict` run one program for each network, type and law; `train` one for each network and type, which
takes many steps; `audit` one gradient step of an attack. Weights are blank: no count depends on them. Networks of
`from_torch` are there where PyTorch and transformers are.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from benchmarks import networks
from benchmarks.gpu_programs import compilation
from benchmarks.gpu_programs.cards import Card
from idrc_jax import audit, config, data, models, sampling
from idrc_jax.audit import attacks
from idrc_jax.certificates.schemes import SCHEMES, Gaussian
from idrc_jax.kernels import residual_gpu
from idrc_jax.models import Classifier, Denoiser, Description, loading
from idrc_jax.sampling import devices, noise_laws, random_keys, votes
from idrc_jax.training import classifier, denoiser, initial_state, loop, training_kernel
from idrc_jax.training.job import Job, RunOptions
from idrc_jax.training.steps import Step

SIGMA = 0.25
_PLATFORM = "gpu"
_TARGETS = 8  # images that the audit attacks at a time
TYPES = ("bfloat16", "float32")
_PAIRS = ("full U-Net + ResNet-110", "small U-Net + ResNet-20")  # the full one has 35.7 million weights
_FROM_TORCH = "from_torch "
_TORCH = (_FROM_TORCH + "ResNet-18", _FROM_TORCH + "ConvNeXt-T")  # of `networks.ANY`; from_torch knows float32 only

_FUSED = " (fused attention)"


class Lowered(NamedTuple):
    """A program before it is compiled.

    Attributes:
      program: for the devices of a mesh.
      units: samples or images that a device takes in one turn of the main loop.
    """

    program: jax.stages.Lowered
    units: int


@dataclass(frozen=True)
class Program:
    """A program that a command runs.

    Attributes:
      command: "certify" (and "predict"), "train" or "audit".
      network: its name.
      dtype: its compute type.
      law: of the noise, a name in `noise_laws.LAWS`.
      lower: makes it for some devices of a card.
      options: of the compiler.
      alone: whether it runs on one device alone.
    """

    command: str
    network: str
    dtype: str
    law: str
    lower: Callable[[Card, Mesh], Lowered]
    options: Mapping[str, bool] = field(default_factory=dict)
    alone: bool = False

    @property
    def name(self) -> str:
        """All that tells it from others."""
        law = "" if self.law == "normal" else f", {self.law}"
        return f"{self.command}, {self.network}, {self.dtype}{law}"


def every() -> list[Program]:
    """All of them, the most wanted first."""
    main = [_certify(f"ResNet-{depth}", dtype) for depth in (110, 20) for dtype in TYPES]
    steps = [_train(depth, dtype) for depth in (110, 20) for dtype in TYPES]
    pairs = [_certify(name, dtype) for name in _PAIRS for dtype in TYPES]
    steps += [_train(depth, "bfloat16", by_kernel=True) for depth in (110, 20)]
    steps += [_train(depth, "bfloat16", "device") for depth in (110, 20)]
    denoisers = [_train_denoiser(size, dtype) for size in ("full", "small") for dtype in TYPES]
    large = [_certify(name, dtype) for name in ("ResNet-50", "ViT-B/16") for dtype in TYPES]
    large += [_certify(f"{name}{_FUSED}", "bfloat16") for name in (_PAIRS[0], "ViT-B/16")]
    laws = [
        _certify(name, dtype, law)
        for law in noise_laws.LAWS
        if law != "normal"
        for name in ("ResNet-110", "ResNet-20", "ResNet-50", "ViT-B/16")
        for dtype in TYPES
    ]
    attacked = [_attack(f"ResNet-{depth}", dtype) for depth in (110, 20) for dtype in TYPES]
    attacked += [_attack("ResNet-20", "bfloat16", law) for law in noise_laws.LAWS if law != "normal"]
    attacked += [_attack("small U-Net + ResNet-20", "bfloat16")]
    imported = [] if missing() else [_certify(name, "float32") for name in _TORCH]
    return main + steps + pairs + denoisers + large + imported + laws + attacked


def missing() -> list[str]:
    """Packages without which there are no networks of `from_torch`."""
    return [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]


def _certify(network: str, dtype: str, law: str = "normal") -> Program:
    def lower(card: Card, mesh: Mesh) -> Lowered:
        with compilation.cudnn_of(card):
            model = _classifier(network, dtype)
            chunk = sampling.default_chunk(model, mesh, card.usable)
            return Lowered(votes.lower_votes(sampling.Execution(model, mesh, chunk), law), chunk)

    # Without a card that tries some, XLA finds no tiles of its own for the products of 197 tokens.
    options = {"xla_gpu_enable_triton_gemm": False} if network.startswith("ViT") else {}
    return Program("certify", network, dtype, law, lower, options)


def _attack(network: str, dtype: str, law: str = "normal") -> Program:
    """One step of projected gradient descent on a few images, with the audit's samples."""
    samples = audit.Settings().samples
    scheme = next(kind for kind in SCHEMES.values() if kind.law == law)(sigma=SIGMA)

    def lower(card: Card, mesh: Mesh) -> Lowered:
        model = _classifier(network, dtype)
        whole, rows = devices.replicated(mesh), devices.split_first_axis(mesh)
        targets = _TARGETS * mesh.size
        lowered = attacks.margin_directions.lower(
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), (model.params,)),
            jax.ShapeDtypeStruct((), random_keys.root(0).dtype, sharding=whole),
            jax.ShapeDtypeStruct((targets, *model.image_shape), jnp.float32, sharding=rows),
            *(jax.ShapeDtypeStruct((targets,), kind, sharding=rows) for kind in (jnp.uint32, jnp.int32, jnp.uint32)),
            apply_fns=(model.apply_fn,),
            number=model.classes,
            scheme=scheme,
            samples=samples,
            straight_through=False,
            mesh=mesh,
        )
        return Lowered(lowered, _TARGETS * samples)

    return Program("audit", network, dtype, law, lower)


def _train(depth: int, dtype: str, statistics: str = "batch", *, by_kernel: bool = False) -> Program:
    """Cohen's recipe: batches of 256, 50 steps a dispatch; by XLA alone or by `residual_gpu`."""

    def lower(card: Card, mesh: Mesh) -> Lowered:
        settings = config.load("configs/cifar10.py")
        settings.model.depth, settings.model.dtype = depth, dtype
        images, recipe = _cifar(), config.recipe(settings)
        description = config.description(settings, images)

        def step_on(optimiser: optax.GradientTransformation, mesh: Mesh, epoch: int) -> Step:
            chain = residual_gpu.blocks if by_kernel else None
            network = training_kernel.network_of(models.abstract(description, dtype=dtype, chain=chain)[0])
            scheme = Gaussian(sigma=SIGMA)
            return classifier.make_step(network, recipe, scheme, optimiser, 0, mesh, statistics=statistics)

        arrays = (images.images, images.labels)
        return _lowered_steps(Job(description, images, recipe, 0, "", (), {}, arrays, step_on, ("loss",)), mesh)

    how = ["statistics of a device"] * (statistics == "device") + ["by kernel"] * by_kernel
    name = f"ResNet-{depth}" + (f" ({', '.join(how)})" if how else "")
    return Program("train", name, dtype, "normal", lower, alone=by_kernel)


def _train_denoiser(size: str, dtype: str) -> Program:
    def lower(card: Card, mesh: Mesh) -> Lowered:
        settings = config.load(f"configs/denoiser.py:{size}")
        settings.model.dtype = dtype
        images, recipe, target = _cifar(), config.recipe(settings), config.denoiser_target(settings)
        description = config.denoiser_description(settings, images)

        def step_on(optimiser: optax.GradientTransformation, mesh: Mesh, epoch: int) -> Step:
            return denoiser.make_step(training_kernel.graph_on(mesh, description), recipe, target, optimiser, 0, mesh)

        job = Job(description, images, recipe, 0, "", (), {}, (images.images,), step_on, ("loss",), averaged=True)
        return _lowered_steps(job, mesh)

    return Program("train", f"{size} U-Net", dtype, "normal", lower)


def _lowered_steps(job: Job, mesh: Mesh) -> Lowered:
    """Lower the dispatch of as many steps as `loop.run` sends at a time."""
    whole = devices.replicated(mesh)
    optimiser = job.recipe.optimiser(job.epoch_steps)
    run = loop.dispatches(job.make_step(optimiser, mesh, 0), on_cpu=False)
    state = initial_state.shapes(job, optimiser, mesh)
    order = jax.ShapeDtypeStruct((len(job.train_set),), jnp.int32, sharding=whole)
    arrays = (jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=whole) for one in job.data)
    lowered = run.lower(state, order, *arrays, count=RunOptions().steps_per_dispatch)
    return Lowered(lowered, job.recipe.batch // mesh.size)


@cache
def _cifar() -> data.Dataset:
    """Blank images in CIFAR-10's place."""
    return data.from_arrays(np.zeros((50_000, 32, 32, 3), np.uint8), np.zeros(50_000, np.int32), classes=10)


@cache
def _classifier(network: str, dtype: str) -> Classifier:
    """A network as the commands load it on a GPU, plain but for what its name says."""
    plain, fused = network.removesuffix(_FUSED), network.endswith(_FUSED)
    kernel = "auto" if fused else "xla"
    if " + " in plain:
        before, after = plain.split(" + ")
        return models.denoised(_classifier(after, dtype), _denoiser(before.split()[0], dtype, kernel), sigma=SIGMA)
    if network.startswith(_FROM_TORCH):
        return _from_torch(networks.ANY[network.removeprefix(_FROM_TORCH)])
    described = {
        "ResNet-110": networks.describe(110),
        "ResNet-20": networks.describe(20),
        "ResNet-50": _IMAGENET | {"architecture": "resnet50", "depth": 50, "shortcut": "projection"},
        "ViT-B/16": _IMAGENET | {"architecture": "vit", "vit": _VIT},
    }[plain] | {"dtype": dtype}
    return loading.classifier_of(_blank(described), described, dtype=dtype, kernel=kernel, platform=_PLATFORM)


def _from_torch(description: Description) -> Classifier:
    """A module of transformers as `from_torch` makes it; of its implementations the one that a GPU runs."""
    from benchmarks import modules  # needs PyTorch
    from idrc_jax.interop import from_torch

    shape = tuple(description["image_shape"])
    about = {name: description[name] for name in ("mean", "std")}
    return from_torch(modules.build(description), image_shape=shape, **about).implementations[-1]


_IMAGENET = {"classes": 1000, "image_shape": [224, 224, 3], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_VIT = {"size": 224, "patch": 16, "width": 768, "depth": 12, "heads": 12, "mlp": 3072}


def _denoiser(size: str, dtype: str, kernel: str) -> Denoiser:
    settings = config.load(f"configs/denoiser.py:{size}")
    target = config.denoiser_target(settings)
    described = config.denoiser_description(settings, _cifar()) | {
        "dtype": dtype,
        "diffusion": {"schedule": {}, "prediction": target.prediction},
    }
    return loading.denoiser_of(_blank(described), described, dtype=dtype, kernel=kernel)


def _blank(description: Description) -> models.Arrays:
    """Tensors of a network as its file holds them: ones for variances, else zeros."""
    _, params, stats = models.abstract(description, dtype=description["dtype"])
    return {
        name: (np.ones if name.endswith(".var") else np.zeros)(leaf.shape, np.float32)
        for name, leaf in (params | stats).items()
    }
