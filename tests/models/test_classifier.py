from test_rooms import MODULES, imported


def reached(name):
    """All modules of the package that one imports, by others too."""
    found, new = set(), {name}
    while new:
        found |= new
        new = set().union(*(imported(MODULES[one]) & set(MODULES) for one in new)) - found
    return found


def test_what_is_certified_stands_apart_from_networks_files_and_kernels():
    assert reached("models.classifier") == {
        "models.classifier", "models.interchangeable", "models.tensors", "core.validate",
    }  # fmt: skip


def test_files_stand_apart_from_what_runs_them():
    assert not {"models.loading", "models.folding", "models.classifier"} & reached("models.weights")
