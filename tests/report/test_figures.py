import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import running
from conftest import ROOT
from scipy import stats
from test_metrics import SURE, results

from idrc_jax.commands import figures as command
from idrc_jax.report import figures
from idrc_jax.results import gallery_file, metrics
from idrc_jax.results.runs import Run

GENERATOR = np.random.default_rng(0)
GAUSSIAN = results([float(r) for r in GENERATOR.uniform(0, 1, 60)])
L1 = results([math.nan] * 40, published=[float(r) for r in GENERATOR.uniform(0, 1, 40)], scheme="l1")


def test_curves_are_the_certified_accuracy(tmp_path):
    figure = figures.plot_certified_accuracy([GAUSSIAN], tmp_path / "plot.png")
    (line,) = figure.axes[0].get_lines()
    radii, accuracies = line.get_data()
    for radius, accuracy in zip(radii, accuracies, strict=True):
        assert accuracy == pytest.approx(metrics.certified_accuracy(GAUSSIAN, radius))
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


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_nothing_looks_like_a_measurement_and_the_legend_explains_the_rest():
    figure = figures.plot_certified_accuracy([GAUSSIAN, L1, GAUSSIAN], labels=["one", "two", "three"])
    (axes,) = figure.axes
    assert {line.get_marker() for line in axes.get_lines()} == {"None"}
    band = "95 % interval of the certified accuracy at each radius"
    assert legend(figure) == ["A   one", "B   two, published (not a certificate)", "C   three", band]
    for text, line in zip(axes.texts, axes.get_lines(), strict=True):
        assert text.get_color() == line.get_color()
        radii, accuracies = line.get_data()
        x, y = text.get_position()
        assert y == accuracies[np.searchsorted(radii, x)]  # on its curve
    assert [text.get_text() for text in axes.texts] == ["A", "B", "C"]
    alone = figures.plot_certified_accuracy([GAUSSIAN], labels=["one"])
    assert legend(alone) == ["one", band]
    assert not alone.axes[0].texts
    assert legend(figures.plot_certified_accuracy([L1], labels=["two"])) == ["two, published (not a certificate)"]


def test_a_letter_stands_for_one_name_in_all_panels_and_nothing_certified_has_one_too():
    several = [run("", radii(s), scheme=scheme, sigma=s) for scheme in ("gaussian", "l1") for s in (1, 2)]
    figure = figures.plot_sigmas([*several, run("", [0.0] * 5, scheme="l2", sigma=1)])
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["A", "B"], ["A", "B"], ["A"]]
    assert len(legend(figure)) == 3


def test_all_panels_show_the_largest_radius_of_any():
    far = [3 * radius for radius in radii(2)]
    for several in (("gaussian", radii(1)), ("l1", far)), (("gaussian", far), ("l1", radii(1))):
        figure = figures.plot_sigmas([run("", own, scheme=scheme, sigma=1) for scheme, own in several])
        assert all(axes.get_xlim()[0] == 0 and axes.get_xlim()[1] > max(far) for axes in figure.axes)


def test_labels_must_fit():
    with pytest.raises(ValueError, match="Expected 1 labels"):
        figures.plot_certified_accuracy([GAUSSIAN], labels=["a", "b"])


def run(name, radii, *, scheme="gaussian", sigma=0.25, published=None, training=None):
    made = results(radii, scheme=scheme, published=published)
    made.manifest["guarantee"]["sigma"] = sigma
    training = {"scheme": {"name": scheme, "sigma": training}, "recipe": {"sigma_low": 0.0}} if training else None
    made.manifest["sessions"] = [{"training": training}]
    return Run(name, dataclasses.replace(made, path=Path("nowhere/certificates.tsv")))


def radii(seed):
    return [float(radius) for radius in np.random.default_rng(seed).uniform(0, 1, 30)]


def test_a_panel_a_scheme_and_a_curve_a_sigma():
    several = [run("", radii(seed), scheme=s, sigma=v, published=radii(seed + 9)) for seed, (s, v) in enumerate(
        (("gaussian", 0.25), ("gaussian", 0.5), ("l1", 0.25), ("l1", 0.5)))]  # fmt: skip
    figure = figures.plot_sigmas(several)
    assert [axes.get_title() for axes in figure.axes] == ["gaussian", "l1"]
    for axes, own in zip(figure.axes, (several[:2], several[2:]), strict=True):
        solid = [line for line in axes.get_lines() if line.get_linestyle() == "-"]
        dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
        assert [line.get_label() for line in solid] == ["σ = 0.25", "σ = 0.5"]
        assert all("not a certificate" in line.get_label() for line in dashed)
        assert len(axes.collections) == 2  # bands, of the valid radii alone
        for line, one in zip(solid, own, strict=True):
            for radius, accuracy in zip(*line.get_data(), strict=True):
                assert accuracy == pytest.approx(metrics.certified_accuracy(one.results, radius))
        for line, one in zip(dashed, own, strict=True):
            for radius, accuracy in zip(*line.get_data(), strict=True):
                assert accuracy == pytest.approx(metrics.certified_accuracy(one.results, radius, published=True))
    colours = [[line.get_color() for line in axes.get_lines() if line.get_linestyle() == "-"] for axes in figure.axes]
    assert colours[0] == colours[1]  # of a sigma, in every panel
    assert len(set(colours[0])) == 2


@pytest.mark.parametrize("panels", range(1, 6))
def test_the_legend_fits(panels):
    several = [
        run("", radii(seed), scheme=scheme, sigma=sigma, published=radii(seed + 9))
        for scheme in ("gaussian", "l1", "l2", "uniform", "inverse_sqrt_norm")[:panels]
        for seed, sigma in enumerate((0.12, 0.25))
    ]
    figure = figures.plot_sigmas(several)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_a_curve_a_training_noise():
    several = [run("x", radii(1), training=0.25), run("y", radii(2), training=0.5), run("by name", radii(3))]
    (axes,) = figures.plot_training(several).axes
    assert [line.get_label() for line in axes.get_lines()] == [
        "trained under gaussian, σ = 0.25", "trained under gaussian, σ = 0.5", "by name",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"one prediction sigma, got 0\.25, 0\.5"):
        figures.plot_training([*several, run("z", radii(4), sigma=0.5)])
    with pytest.raises(ValueError, match="Expected one run a curve"):
        figures.plot_sigmas(several)


def test_bands_hold_the_curve_and_are_the_exact_interval():
    (axes,) = figures.plot_certified_accuracy([GAUSSIAN]).axes
    (band,) = axes.collections
    heights = {}
    for x, y in band.get_paths()[0].vertices:
        heights.setdefault(round(float(x), 9), []).append(y)
    count = sum(row.radius >= 0.5 for row in GAUSSIAN.rows)
    at = round(min(row.radius for row in GAUSSIAN.rows if row.radius >= 0.5), 9)
    low = stats.beta.ppf(0.025, count, 60 - count + 1)
    high = stats.beta.ppf(0.975, count + 1, 60 - count)
    assert min(abs(y - low) for y in heights[at]) < 1e-9
    assert min(abs(y - high) for y in heights[at]) < 1e-9


def gallery(index, seed=0, channels=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(index), 4, 4, channels)).astype(np.uint8)
    return gallery_file.Gallery(np.asarray(index), pixels, pixels // 2, np.full(len(index), 0.1))


def test_noisy_images_by_scheme_and_sigma():
    shown = {
        ("gaussian", 0.25): gallery([1, 5]),
        ("gaussian", 0.5): gallery([5, 7], 1),
        ("l1", 0.5): gallery([0, 5], 2),
    }
    figure = figures.plot_noisy(shown)
    drawn = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["clean", "σ = 0.25", "σ = 0.5"]
    assert len(drawn) == 5  # two clean ones, and no l1 at .25
    assert np.array_equal(drawn[0], shown["gaussian", 0.25].images[1])
    assert np.array_equal(drawn[2], shown["gaussian", 0.5].noisy[0])
    with pytest.raises(ValueError, match="Expected an image in every gallery, got 7"):
        figures.plot_noisy(shown, 7)
    with pytest.raises(ValueError, match="same images"):
        figures.plot_noisy({("gaussian", 0.25): gallery([1]), ("l1", 0.25): gallery([2])})


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_noisy_images_of_any_number_of_channels(channels):
    own = gallery([1], channels=channels)
    drawn = figures.plot_noisy({("gaussian", 0.25): own}).axes[0].get_images()[0].get_array()
    assert np.array_equal(drawn, own.images[0][..., :3] if channels > 3 else own.images[0][..., 0])


def test_the_command_draws_every_format_and_the_same_file_twice(tmp_path):
    names = [tmp_path / f"{stem}.{kind}" for stem in "ab" for kind in ("png", "pdf", "svg")]
    for stem in "ab":
        own = [str(name) for name in names if name.stem == stem]
        running.run(command.main, "sigmas", ROOT / "results/plans/fixed", "--out", *own)
    for one, other in zip(names[:3], names[3:], strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert names[1].read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sigmas", "{empty}", "--out", "{out}.png"], "Expected a header"),
        (["sigmas", "{header}", "--out", "{out}.png"], "at least one row"),
        (["sigmas", "{run}", "--out", "{out}.gif"], "suffix .png, .pdf, .svg"),
        (["sigmas", "{run}", "--out", "{out}/x/y.png"], "folder that exists"),
        (["noisy", "{bare}", "--out", "{out}.png"], "idrc-gallery"),
        (["sigma", "{run}", "--out", "{out}.png"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    (tmp_path / "empty").touch()
    (tmp_path / "header").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n")
    (tmp_path / "bare").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t0\t0\t0.1\t1\t1\n")
    places = {name: tmp_path / name for name in ("empty", "header", "bare", "out")}
    places["run"] = ROOT / "results/plans/fixed"
    assert message in running.refused(command.main, *(a.format(**places) for a in arguments))


def test_the_distribution_of_probabilities_and_their_part_of_the_acr(tmp_path):
    figure = figures.plot_probabilities([Run("sure", SURE), Run("other", GAUSSIAN)])
    shares, parts = figure.axes
    for axes, expected in (
        (shares, lambda p: np.mean(metrics.right_probabilities(SURE) >= p)),
        (parts, lambda p: metrics.radius_share(SURE, p)),
    ):
        at, heights = axes.get_lines()[0].get_data()
        assert len(at) == 6
        for x, height in zip(at[:-1], heights[:-1], strict=True):
            assert height == pytest.approx(expected(stats.norm.cdf(x) - 1e-12))
        assert heights[-1] == pytest.approx(0)
        assert axes.get_lines()[0].get_drawstyle() == "steps-pre"
        assert [text.get_text() for text in axes.get_xticklabels()] == [".5", ".7", ".9", ".99", ".999"]
        assert axes.get_xticks()[3] == pytest.approx(stats.norm.ppf(0.99))
    assert legend(figure) == ["A   sure", "B   other", "95 % interval of the share of images at each p"]
    none = figures.plot_probabilities([Run("none", L1)])  # no radius is valid: no ACR to be parted
    assert [len(axes.get_lines()) for axes in none.axes] == [1, 0]


def test_probabilities_on_the_command_line(tmp_path):
    place = str(ROOT / "results/cifar10_resnet20_0.25/gaussian")
    status, _, error = running.run(command.main, "probabilities", place, "--out", str(tmp_path / "p.png"))
    assert (status, error) == (0, "")
    assert (tmp_path / "p.png").stat().st_size > 5000
