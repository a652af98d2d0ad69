import math

import numpy as np
import pytest
from test_summary import results

from idrc_jax import figures, summary

GENERATOR = np.random.default_rng(0)
GAUSSIAN = results([float(r) for r in GENERATOR.uniform(0, 1, 60)])
L1 = results([math.nan] * 40, published=[float(r) for r in GENERATOR.uniform(0, 1, 40)], scheme="l1")


def test_curves_are_the_certified_accuracy(tmp_path):
    figure = figures.plot_certified_accuracy([GAUSSIAN], tmp_path / "plot.png")
    (line,) = figure.axes[0].get_lines()
    radii, accuracies = line.get_data()
    for radius, accuracy in zip(radii, accuracies, strict=True):
        assert accuracy == pytest.approx(summary.certified_accuracy(GAUSSIAN, radius))
    assert line.get_drawstyle() == "steps-pre"  # between two radii the value is that of the larger
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_published_radii_are_dashed_and_named_no_certificate():
    figure = figures.plot_certified_accuracy([GAUSSIAN, L1])
    solid, dashed = figure.axes[0].get_lines()
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert "not a certificate" in dashed.get_label()
    assert "not a certificate" not in solid.get_label()
    assert solid.get_color() != dashed.get_color()


def test_a_scheme_with_both_radii_shows_both():
    both = results([0.1, 0.2], published=[0.5, 0.9], scheme="l1")
    assert len(figures.plot_certified_accuracy([both]).axes[0].get_lines()) == 2


def test_labels_must_fit():
    with pytest.raises(ValueError, match="Expected 1 labels"):
        figures.plot_certified_accuracy([GAUSSIAN], labels=["a", "b"])
