"""idrc_jax: certified robustness by randomized smoothing, with constant and input-dependent noise.

Names are imported when first used, so that reading results or computing bounds never loads JAX. The rooms, from the
ground up, each with what it is for in its first lines: `core`, `certificates`, `several_levels`, `results`, `report`;
below them JAX: `data`, `kernels`, `models`, `interop`, `sampling`, `losses`, `training`, `certification`, `audit`,
`config`, `commands`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_ROOMS = (
    "audit",
    "certificates",
    "certification",
    "config",
    "data",
    "interop",
    "kernels",
    "losses",
    "models",
    "report",
    "results",
    "sampling",
    "several_levels",
    "training",
)
_NAMES = {  # public name -> the room that has it
    "Classifier": "models",
    "Results": "results",
    "SmoothedClassifier": "certification",
    "Denoiser": "models",
    "abstention_rate": "results",
    "average_certified_radius": "results",
    "certified_accuracy": "results",
    "certified_accuracy_lower": "results",
    "certify": "certification",
    "count_votes": "sampling",
    "denoised": "models",
    "ensemble": "models",
    "from_torch": "interop",
    "load_classifier": "models",
    "load_denoiser": "models",
    "plot_certified_accuracy": "report",
    "predict": "certification",
    "read_results": "results",
    "summary_table": "results",
    "to_pandas": "results",
}
_MODULES = {  # module that is public under this name -> where it is
    "attacks": "audit.attacks",
    "checkpoints": "models",
    "compare": "results.compare",
    "denoising": "training.denoiser",
    "devices": "sampling.devices",
    "diffusion": "models.diffusion",
    "exhibits": "certification.gallery_selection",
    "figures": "report.figures",
    "findings": "results.audit_rows",
    "galleries": "results.gallery_file",
    "noise": "sampling.noise_laws",
    "paper": "report.paper_numbers",
    "plans": "certificates.sampling_plans",
    "prng": "sampling.random_keys",
    "recertify": "results.recertify",
    "refutation": "audit.search",
    "runs": "results.runs",
    "schemes": "certificates.schemes",
    "smoothing": "certification.smoothed_classifier",
    "statistics": "certificates.confidence_bounds",
    "summary": "results",
    "tables": "report.tables",
    "workers": "sampling.batch_systems",
}
__all__ = ["__version__", *_NAMES, *_MODULES, *_ROOMS]

if TYPE_CHECKING:
    from idrc_jax import (
        audit,
        certificates,
        certification,
        config,
        data,
        interop,
        kernels,
        losses,
        models,
        report,
        results,
        sampling,
        several_levels,
        training,
    )
    from idrc_jax import models as checkpoints
    from idrc_jax import results as summary
    from idrc_jax.audit import attacks
    from idrc_jax.audit import search as refutation
    from idrc_jax.certificates import confidence_bounds as statistics
    from idrc_jax.certificates import sampling_plans as plans
    from idrc_jax.certificates import schemes
    from idrc_jax.certification import SmoothedClassifier, certify, predict
    from idrc_jax.certification import gallery_selection as exhibits
    from idrc_jax.certification import smoothed_classifier as smoothing
    from idrc_jax.interop import from_torch
    from idrc_jax.models import Classifier, Denoiser, denoised, diffusion, ensemble, load_classifier, load_denoiser
    from idrc_jax.report import figures, plot_certified_accuracy, tables
    from idrc_jax.report import paper_numbers as paper
    from idrc_jax.results import (
        Results,
        abstention_rate,
        average_certified_radius,
        certified_accuracy,
        certified_accuracy_lower,
        compare,
        read_results,
        recertify,
        runs,
        summary_table,
        to_pandas,
    )
    from idrc_jax.results import audit_rows as findings
    from idrc_jax.results import gallery_file as galleries
    from idrc_jax.sampling import batch_systems as workers
    from idrc_jax.sampling import count_votes, devices
    from idrc_jax.sampling import noise_laws as noise
    from idrc_jax.sampling import random_keys as prng
    from idrc_jax.training import denoiser as denoising


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    elif name in _MODULES or name in _ROOMS:
        value = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
