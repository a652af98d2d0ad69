"""What to install for what is not always there."""

_NOTES = {"torch": " (docs/how_to/importing.md says how to get it without CUDA)"}


def how_to_get(extra: str) -> str:
    """The line that installs an extra of `pyproject.toml` from a checkout: there is no package to fetch by name."""
    return f"pip install '.[{extra}]' in the checkout of idrc_jax{_NOTES.get(extra, '')}"
