"""idrc_jax: certified robustness by randomized smoothing, with constant and input-dependent noise.

Names are imported when first used, so that reading results or computing bounds never loads JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Classifier": "checkpoints",
    "SmoothedClassifier": "smoothing",
    "Denoiser": "diffusion",
    "abstention_rate": "summary",
    "average_certified_radius": "summary",
    "certified_accuracy": "summary",
    "certified_accuracy_lower": "summary",
    "certify": "certification",
    "count_votes": "sampling",
    "denoised": "denoised_smoothing",
    "from_torch": "interop.torch_modules",
    "load_classifier": "checkpoints",
    "load_denoiser": "checkpoints",
    "plot_certified_accuracy": "figures",
    "predict": "certification",
    "read_results": "results",
    "summary_table": "summary",
    "to_pandas": "interop.tables",
}
_MODULES = (
    "attacks",
    "audit",
    "certificates",
    "certification",
    "checkpoints",
    "compare",
    "config",
    "data",
    "denoising",
    "devices",
    "diffusion",
    "exhibits",
    "figures",
    "findings",
    "galleries",
    "noise",
    "paper",
    "plans",
    "prng",
    "recertify",
    "refutation",
    "report",
    "results",
    "runs",
    "sampling",
    "schemes",
    "smoothing",
    "statistics",
    "summary",
    "tables",
    "training",
    "workers",
)
__all__ = ["__version__", *_HOME, *_MODULES]

if TYPE_CHECKING:
    from idrc_jax import (
        attacks,
        audit,
        certificates,
        certification,
        checkpoints,
        compare,
        config,
        data,
        denoising,
        devices,
        diffusion,
        exhibits,
        figures,
        findings,
        galleries,
        noise,
        paper,
        plans,
        prng,
        recertify,
        refutation,
        report,
        results,
        runs,
        sampling,
        schemes,
        smoothing,
        statistics,
        summary,
        tables,
        training,
        workers,
    )
    from idrc_jax.certification import certify, predict
    from idrc_jax.checkpoints import Classifier, load_classifier, load_denoiser
    from idrc_jax.denoised_smoothing import denoised
    from idrc_jax.diffusion import Denoiser
    from idrc_jax.figures import plot_certified_accuracy
    from idrc_jax.interop.tables import to_pandas
    from idrc_jax.interop.torch_modules import from_torch
    from idrc_jax.results import read_results
    from idrc_jax.sampling import count_votes
    from idrc_jax.smoothing import SmoothedClassifier
    from idrc_jax.summary import (
        abstention_rate,
        average_certified_radius,
        certified_accuracy,
        certified_accuracy_lower,
        summary_table,
    )


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
