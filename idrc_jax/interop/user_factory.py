"""A classifier from the user's own code, by the name of a function that makes it."""

import dataclasses

from idrc_jax.core import user_code
from idrc_jax.models import Classifier, fingerprint


def load(name: str) -> Classifier:
    """Call the function `package.module:function` for a classifier; the current folder is searched first.

    The description names the factory, and the sha256 is the classifier's `models.fingerprint`.

    Raises:
      ValueError: the function cannot be imported, raises, or returns anything but a `Classifier`.
    """
    made = user_code.call("model.factory", name, "a classifier")
    if not isinstance(made, Classifier):
        raise ValueError(f"Expected model.factory={name} to return an idrc_jax.Classifier, got {type(made).__name__}.")
    description = {**made.description, "factory": name}
    named = dataclasses.replace(made, sha256=fingerprint(made), description=description)
    return named.with_alternatives(*made.alternatives)
