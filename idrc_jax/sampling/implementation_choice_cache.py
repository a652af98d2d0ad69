"""What was measured of how a network runs fastest, kept in the user's cache."""

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from idrc_jax.certificates.schemes import Scheme
from idrc_jax.core import files
from idrc_jax.core.files import cache_folder
from idrc_jax.kernels import build
from idrc_jax.models import Classifier, fingerprint
from idrc_jax.sampling.execution import Execution, largest_chunk

SCHEMA_VERSION = 2
_AGREED = 100  # weights whose implementations are remembered to agree


class ChoiceCache:
    """A choice in a file of its own, which is named by all that it depends on (see `identity`).

    Args:
      folder: of the file; the user's cache by default.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self._folder, self._identity = folder, identity
        self._name = f"choice-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}.json"

    def recall(self, classifier: Classifier, meshes: list[Mesh], samples: int) -> Execution | None:
        """What was measured for a job at least as long, if it can be had still and is not of other weights alone."""
        try:
            said = json.loads(self._path().read_text())
            if said["identity"] != self._identity or (said["samples"] is not None and samples > said["samples"]):
                return None
            if said["of"] and said["of"] != _weights(classifier):
                return None
            (chosen,) = [one for one in classifier.implementations if one.kernel == said["kernel"]]
            (mesh,) = [one for one in meshes if one.size == said["devices"]]
            if not 2 <= said["chunk"] <= largest_chunk(chosen, mesh):
                return None  # the memory is another
            rates = {str(name): float(rate) for name, rate in said["rates"].items()}
            left_out = {str(name): str(why) for name, why in said["left_out"].items()}
            return Execution(chosen, mesh, said["chunk"], rates, left_out)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def remember(self, chosen: Execution, *, samples: int | None, of: Classifier | None = None) -> None:
        """Keep a choice: for jobs of at most so many samples, or for all; of the weights of one classifier, or of all.
        One warning if it cannot be written."""
        said = {
            "kernel": chosen.classifier.kernel,
            "devices": chosen.mesh.size,
            "chunk": chosen.chunk,
            "rates": chosen.rates,
            "left_out": chosen.left_out,
            "samples": samples,
            "of": _weights(of) if of else "",
            "identity": self._identity,
            "agreed": [],
        }
        try:
            files.write_json(self._path(), said)
        except (OSError, RuntimeError) as error:
            told = f"{type(error).__name__}: {error}"
            logging.getLogger("idrc_jax").warning("What was measured is not remembered: %s", told)

    def recall_agreement(self, classifier: Classifier) -> bool:
        """Whether the implementations of these very weights were found to agree."""
        try:
            return _weights(classifier) in json.loads(self._path().read_text())["agreed"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError):
            return False

    def remember_agreement(self, classifier: Classifier) -> None:
        """Note that the implementations of these weights agree, which the newest notes say."""
        try:
            said = json.loads(self._path().read_text())
            said["agreed"] = [*said["agreed"], _weights(classifier)][-_AGREED:]
            files.write_json(self._path(), said)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError):
            return  # they are compared again

    def _path(self) -> Path:
        return (self._folder or cache_folder()) / self._name


def identity(classifier: Classifier, scheme: Scheme, meshes: list[Mesh], chunk: int) -> dict[str, Any]:
    """All that a choice depends on, as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "network": classifier.structure,
        "implementations": [one.kernel for one in classifier.implementations],
        "image_shape": list(classifier.image_shape),
        "dtype": classifier.dtype,
        "law": scheme.law,
        **({"exact": True} if scheme.exact else {}),
        "chunk": chunk,
        "devices": [mesh.size for mesh in meshes],
        "device": meshes[0].devices.flat[0].device_kind,
        "local_devices": len(jax.local_devices()),
        "cores": os.cpu_count(),
        "processor": build.processor(),
        "environment": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "IDRC_VECTOR_BITS", "CXX")},
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "kernels": _sources(),
    }


@functools.cache
def _sources() -> str:
    """SHA-256 of the kernels."""
    room = Path(build.__file__).parent.rglob("*")
    sources = sorted(path for path in room if path.suffix in (".cc", ".h", ".py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _weights(classifier: Classifier) -> str:
    """What names the weights, those of a denoiser in front too."""
    denoiser = classifier.description.get("denoiser", {}).get("weights_sha256", "")
    return (classifier.sha256 or fingerprint(classifier)) + denoiser
