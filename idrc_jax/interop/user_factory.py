"""A classifier from the user's own code, by the name of a function that makes it."""

import dataclasses
import importlib
import os
import sys

from idrc_jax.models import Classifier, fingerprint


def load(name: str) -> Classifier:
    """Call the function `package.module:function` for a classifier; the current folder is searched first.

    The description names the factory, and the sha256 is the classifier's `models.fingerprint`.

    Raises:
      ValueError: the function cannot be imported, raises, or returns anything but a `Classifier`.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"Expected model.factory to be package.module:function, got {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)()
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"Expected model.factory={name} to make a classifier, got {what}.") from error
    if not isinstance(made, Classifier):
        raise ValueError(f"Expected model.factory={name} to return an idrc_jax.Classifier, got {type(made).__name__}.")
    description = {**made.description, "factory": name}
    named = dataclasses.replace(made, sha256=fingerprint(made), description=description)
    return named.with_alternatives(*made.alternatives)
