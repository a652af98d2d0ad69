"""Errors about settings name attributes, and can be told by other names."""

import pickle

import pytest

from idrc_jax.core import validate
from idrc_jax.core.validate import SettingError

PATHS = {"n": "certify.n", "levels": "noise.levels", "edges": "noise.edges", "batch": "train.batch"}


@pytest.mark.parametrize(
    ("check", "plain", "renamed"),
    [
        (lambda: validate.count("n", 0, 1), "Expected n >= 1, got 0.", "Expected certify.n >= 1, got 0."),
        (lambda: validate.integer("n", "n"), "n to be an integer, got 'n'.", "certify.n to be an integer, got 'n'."),
        (lambda: validate.in_open_unit_interval("n", 1), "Expected 0 < n < 1", "Expected 0 < certify.n < 1"),
        (lambda: validate.one_of("n", "lo", ["low"]), "Did you mean 'low'?", "Expected certify.n to be one of low"),
        (lambda: validate.level("a times each of levels", 1e50), "of levels from", "a times each of noise.levels from"),
        (lambda: validate.positive("n0", 0), "Expected n0 > 0", "Expected n0 > 0"),
        (lambda: validate.at_least("train.batch", 0, 1), "train.batch >= 1", "Expected train.batch >= 1"),
    ],
)
def test_a_refusal_names_the_attribute_or_the_setting_behind_it(check, plain, renamed):
    with pytest.raises(SettingError) as refused:
        check()
    assert plain in str(refused.value)
    assert str(refused.value.renamed(PATHS)).startswith("Expected ")
    assert renamed in str(refused.value.renamed(PATHS))


def test_several_names_are_told_each_once():
    error = SettingError("Expected one level a bin, 2 levels for 1 edges, got levels.", "levels", "edges")
    told = "Expected one level a bin, 2 noise.levels for 1 noise.edges, got levels."
    assert str(error.renamed(PATHS)) == told
    assert str(error.renamed(PATHS).renamed(PATHS)) == told
    assert pickle.loads(pickle.dumps(error)).names == ("levels", "edges")


def test_what_no_float_holds_is_not_finite():
    assert [validate.finite(value) for value in (10**300, 10**400, float("nan"), True, "1")] == [True, *[False] * 4]
    with pytest.raises(SettingError, match="Expected n > 0, got 10000"):
        validate.positive("n", 10**400)
