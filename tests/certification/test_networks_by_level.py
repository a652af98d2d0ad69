"""A network for each level: whose votes are drawn under which level, what a run is held to, and what is refused."""

import dataclasses
import json
import time
from unittest import mock

import jax
import jax.numpy as jnp
import level_runs
import numpy as np
import pytest
from conftest import linear_logits
from level_runs import PLANS, without_time

import idrc_jax as idrc
from idrc_jax import data, models, results, sampling
from idrc_jax.certificates import confidence_bounds, schemes
from idrc_jax.certification import estimate, guarantee
from idrc_jax.certification.in_memory import predict
from idrc_jax.models import Classifier, ensemble
from idrc_jax.sampling import devices, execution, random_keys
from idrc_jax.sampling.vote_counter import VoteCounter

CASCADE = schemes.Cascade(sigma=0.5, levels=(1.0, 0.3), thresholds=(0.6,))
ROUTED = schemes.Routed(sigma=0.5, levels=(0.3, 1.0), router_level=0.4)
STEPPED = schemes.Stepped(sigma=0.5, edges=(2.2, 2.4), levels=(0.3, 1.0, 0.3))  # two bins of one level


def network(seed, answers=3):
    params = np.random.default_rng(seed).normal(size=(answers, 16)).astype(np.float32)
    return Classifier(apply_fn=linear_logits, params=jnp.asarray(params), classes=answers, image_shape=(4, 4, 1))


@pytest.fixture(scope="module")
def dataset():
    return level_runs.made_images()


@pytest.fixture(scope="module")
def large():
    return network(11)


@pytest.fixture(scope="module")
def two(linear, large):
    """That of the large level of the cascade, and `linear` under the small one."""
    return linear.at_levels([large, linear])


def certify(classifier, dataset, workdir, scheme=CASCADE, **more):
    return level_runs.certify(classifier, scheme, dataset, workdir, **more)


def counted(classifier, scheme, level, dataset, idx, n):
    sigma = float(schemes.drawn_levels(scheme, 0.0)[level])
    key = random_keys.stage(random_keys.root(5), random_keys.stage_of_level(random_keys.ESTIMATION, level))
    votes = sampling.count_votes(
        classifier, schemes.Gaussian(sigma), data.to_unit(dataset.images[[idx]]), indices=np.array([idx]), n=n, key=key,
        chunk=64,
    )[0]  # fmt: skip
    return {k: int(v) for k, v in enumerate(votes[:-1]) if v}


def test_one_network_under_all_levels_gives_the_rows_that_it_gives_alone(linear, dataset, tmp_path):
    alone = certify(linear, dataset, tmp_path / "alone")
    both = certify(linear.at_levels([linear, linear]), dataset, tmp_path / "both")
    assert without_time(both) == without_time(alone)
    assert "by_level" not in alone.manifest["guarantee"]
    named = {"weights_sha256": models.fingerprint(linear), "dtype": "float32"}
    assert both.manifest["guarantee"] == alone.manifest["guarantee"] | {"by_level": [named, named]}


@pytest.mark.parametrize("scheme", [CASCADE, ROUTED], ids=["cascade", "routed"])
def test_votes_of_each_level_are_its_own_networks(linear, large, two, dataset, tmp_path, scheme):
    networks, classifier = [large, linear], two
    if scheme is ROUTED:
        classifier = two.routed_by(network(2, 2))
        networks = [classifier.router, *networks]
    seen = set()
    for row in certify(classifier, dataset, tmp_path, scheme).rows:
        for one in row.votes_by_level:
            n = sum(one.votes.values())
            assert counted(networks[one.level], scheme, one.level, dataset, row.idx, n) == one.votes
            seen.add(one.level)
    assert seen == set(range(len(networks)))


@pytest.mark.parametrize("plan", ["fixed", "to_radius"])
def test_votes_in_each_bin_are_its_own_networks(linear, large, dataset, tmp_path, plan):
    networks = [large, linear, network(12)]
    read = certify(linear.at_levels(networks), dataset, tmp_path, STEPPED, plan=plan)
    norms = np.linalg.norm(dataset.images.reshape(24, -1) / 255.0, axis=1)
    seen = set()
    for row in read.rows:
        number = int(norms[row.idx] >= 2.2) + int(norms[row.idx] >= 2.4)
        key = random_keys.stage(random_keys.root(5), random_keys.ESTIMATION)
        votes = sampling.count_votes(
            networks[number], schemes.Gaussian(0.5 * STEPPED.levels[number]), data.to_unit(dataset.images[[row.idx]]),
            indices=np.array([row.idx]), n=sum(row.votes.values()), key=key, chunk=64,
        )[0]  # fmt: skip
        assert {k: int(v) for k, v in enumerate(votes[:-1]) if v} == row.votes
        seen.add(number)
    assert seen == {0, 1, 2}
    assert repr(idrc.recertify.recertify(read).rows) == repr(read.rows)


def test_the_table_says_how_many_radii_an_edge_cuts(linear, dataset, tmp_path):
    read = certify(linear, dataset, tmp_path, STEPPED)
    norms = np.linalg.norm(dataset.images.reshape(24, -1) / 255.0, axis=1)
    gaps = np.min(np.abs(norms[:, None] - STEPPED.edges), axis=1)
    sure = [row for row in read.rows if row.radius > 0]
    cut = sum(abs(row.radius - gaps[row.idx]) < 1e-6 for row in sure)
    assert 0 < cut < len(sure)
    told = results.summary_table(read)
    assert f"Of {len(sure)} images certified an edge of the bins cuts the radius of {cut}." in told
    assert "sigma 0.5 so near to the bins' edges, even if all votes agree" in told


def test_rows_of_bins_with_networks_depend_on_nothing_else(linear, large, dataset, tmp_path):
    classifier = linear.at_levels([large, linear, network(12)])
    level_runs.require_rows_that_depend_on_nothing_else(classifier, STEPPED, dataset, tmp_path)


def test_one_network_in_all_bins_gives_the_rows_that_it_gives_alone(linear, dataset, tmp_path):
    alone = certify(linear, dataset, tmp_path / "alone", STEPPED)
    all_bins = certify(linear.at_levels([linear] * 3), dataset, tmp_path / "bins", STEPPED)
    assert without_time(all_bins) == without_time(alone)
    images, indices = data.to_unit(dataset.images), np.arange(24)
    given = {"indices": indices, "n": 200, "alpha": 0.01, "chunk": 64}
    both = (predict(one, STEPPED, images, **given) for one in (linear.at_levels([linear] * 3), linear))
    np.testing.assert_array_equal(*both)


def test_the_time_of_an_image_is_that_of_the_slowest_bins_network(linear, large, dataset):
    classifier, images = linear.at_levels([large, linear, network(12)]), data.to_unit(dataset.images)
    norms = np.linalg.norm(images.reshape(24, -1), axis=1)
    few = images[norms < 2.2][:2]  # of the first bin alone
    levels = schemes.host_levels(STEPPED, few)[1]
    chosen = execution.unmeasured(classifier, devices.mesh(1), 16)
    counter = VoteCounter(chosen, STEPPED, few, levels, indices=np.arange(2), key=random_keys.root(0))
    with mock.patch.object(time, "perf_counter", side_effect=[0, 1, 1, 4, 4, 6]):
        assert counter.rates() == [64 / 1, 64 / 3, 64 / 2]
    settings = idrc.certification.Settings(PLANS["fixed"], 0.01)
    with mock.patch.object(VoteCounter, "rates", return_value=[100.0, 50.0]):
        told = estimate(classifier, STEPPED, dataset, np.arange(3), settings, chunk=16)
    assert told.seconds == pytest.approx(3 * 220 / (200 / 3))


def test_a_stopped_run_of_bins_with_networks_says_so(linear, large, dataset, tmp_path):
    networks = [large, linear, network(12)]
    certify(linear.at_levels(networks), dataset, tmp_path, STEPPED, plan="fixed")
    path = tmp_path / "certificates.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:9]))
    assert "their bins chose which" in results.runs.cut_short(results.read_results(tmp_path))
    alone = certify(linear, dataset, tmp_path / "alone", STEPPED, plan="fixed")
    fewer = results.Results(alone.rows[:8], alone.manifest, alone.path)
    assert "they may be of other classes" in results.runs.cut_short(fewer)


def by_index(made):
    """Rows in an order that no speed of the machine changes, by which pieces are sized."""
    return sorted(made.rows, key=lambda row: row.idx)


def test_votes_of_a_level_do_not_depend_on_the_networks_of_others(linear, large, two, dataset, tmp_path):
    other = linear.at_levels([large, network(12)])
    first, second = (
        by_index(certify(one, dataset, tmp_path / str(number), plan="fixed", indices=range(8), chunk=64 + number))
        for number, one in enumerate((two, other))
    )
    below = 0
    for one, another in zip(first, second, strict=True):
        assert one.votes_by_level[0] == another.votes_by_level[0]
        below += one.votes_by_level[1:] != another.votes_by_level[1:]
    assert below > 0


def test_a_run_goes_on_with_its_own_networks_alone(linear, large, two, dataset, tmp_path):
    certify(two, dataset, tmp_path, indices=range(3))
    denoised = dataclasses.replace(linear, description={"denoiser": {"sigma": 0.5}})  # says so alone, here
    for other, message in (
        (linear.at_levels([linear, large]), "network 1's weights_sha256 was .*; network 2's weights_sha256 was"),
        (linear.at_levels([linear, linear]), "were: network 1's weights_sha256 was [^;]*$"),
        (linear.at_levels([large, denoised]), "were: network 2's denoiser was unset, is {'sigma': 0.5}.$"),
        (linear, "were: by_level was 2 networks, is unset.$"),
    ):
        with pytest.raises(ValueError, match=message):
            certify(other, dataset, tmp_path, indices=range(3))
    assert len(certify(two, dataset, tmp_path, indices=range(3))) == 3
    read = results.read_results(tmp_path)
    assert repr(idrc.recertify.recertify(read).rows) == repr(read.rows)


def test_networks_that_do_not_fit_are_refused(linear, large, two, dataset, tmp_path):
    named = {"class_names": ["a", "b", "c"]}
    for one, message in (
        (dataclasses.replace(large, image_shape=(5, 5, 1)), r"image_shape \(4, 4, 1\), got \(5, 5, 1\) as number 2"),
        (network(3, 2), "classes 3, got 2 as number 2"),
        (two, "Expected single networks by level, got more than one as number 2"),
        (linear.routed_by(network(2, 2)), "Expected single networks by level, got more than one as number 2"),
    ):
        with pytest.raises(ValueError, match=message):
            linear.at_levels([linear, one])
    a, b = (dataclasses.replace(linear, description={"class_names": names}) for names in (["a", "b", "c"], ["a", "c"]))
    with pytest.raises(ValueError, match=r"of the classes a, b, c \.\.\., got a, c \.\.\. as number 1"):
        a.at_levels([b, a])
    assert a.at_levels([linear, a]).description == named
    with pytest.raises(ValueError, match=r"of the classes a, b, c \.\.\., got a, c \.\.\. as number 2"):
        linear.at_levels([a, b])
    with pytest.raises(ValueError, match="Expected a network for each level, got none"):
        linear.at_levels([])
    assert len(linear.at_levels(iter([large, linear])).by_level) == 2
    other = dataclasses.replace(linear, description={"class_names": ["c", "b", "a"]})
    labelled = dataclasses.replace(dataset, class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match="Expected the classifier's 3 classes, c, b, a, got 3"):
        level_runs.certify(linear.at_levels([other, linear]), CASCADE, labelled, tmp_path / "none")
    three = linear.at_levels([linear, large, linear])
    for classifier, scheme, wanted in (
        (three, CASCADE, "2 networks by level, one for each level of the scheme cascade, got 3"),
        (two, schemes.Gaussian(0.5), "no networks by level for the scheme gaussian, got 2"),
        (two, schemes.L2(0.5), "no networks by level for the scheme l2, got 2"),
        (two, STEPPED, "3 networks by level, one for each level of the scheme stepped, got 2"),
    ):
        with pytest.raises(ValueError, match=wanted):
            level_runs.certify(classifier, scheme, dataset, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="one level and one network, got stepped and 3 networks by level"):
        sampling.count_votes(
            three, STEPPED, data.to_unit(dataset.images[:1]), indices=np.zeros(1, int), n=10, key=random_keys.root(0)
        )
    with pytest.raises(ValueError, match="a router of images"):
        linear.routed_by(two)
    with pytest.raises(ValueError, match="the denoiser in front of each of them"):
        models.denoised(two, None, sigma=0.5)
    with pytest.raises(ValueError, match="Expected single networks in an ensemble"):
        ensemble([two, linear])


def test_networks_stay_with_each_implementation_are_chosen_for_by_themselves_and_placed_once(linear, large, dataset):
    fast = dataclasses.replace(large, kernel="fast").with_alternatives(large)
    made = dataclasses.replace(linear, kernel="y").with_alternatives(linear).at_levels([fast, linear, linear])
    assert [len(one.by_level) for one in made.implementations] == [3, 3]
    scheme = dataclasses.replace(CASCADE, levels=(1.0, 0.5, 0.3), thresholds=(), shares=())
    chosen = sampling.implementation_choice.choose(made, scheme, samples=0, chunk=16)
    assert [one.classifier.kernel for one in chosen.voters(scheme)] == ["fast", "xla", "xla"]
    placed = execution.unmeasured(made, chunk=16).placed().classifier
    assert placed.params is placed.by_level[1].params is placed.by_level[2].params
    assert placed.by_level[0].params is not placed.params
    images = data.to_unit(dataset.images[:1])
    levels = schemes.host_levels(scheme, images)[1]
    counter = VoteCounter(chosen, scheme, images, levels, indices=np.zeros(1, int), key=random_keys.root(0))
    assert len(counter.rates()) == 3
    assert min(counter.rates()) > 0
    settings = idrc.certification.Settings(PLANS["fixed"], 0.01)
    assert estimate(made, scheme, dataset, np.arange(3), settings, chunk=16).samples == 3 * 3 * 220
    assert "3 networks, one a level" in repr(made)


class Leaf(np.ndarray):
    """An array that says when it goes."""

    gone = 0

    def __del__(self):
        Leaf.gone += 1


@jax.tree_util.register_pytree_node_class
class Scaled:
    """Weights that are arrays only while they are looked at, as those of a quantised network may be."""

    def __init__(self, weights):
        self.weights = weights

    def tree_flatten(self):
        return ((self.weights * 0.5).view(Leaf),), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_each_network_keeps_its_params_though_their_leaves_do_not_last(monkeypatch):
    """No leaf goes while others are placed: the next one could have its id, and got its values."""
    networks = [network(seed) for seed in range(5)]
    params = [np.random.default_rng(seed).normal(size=(48, 3)).astype(np.float32) for seed in range(5)]
    made = [dataclasses.replace(one, params=Scaled(own)) for one, own in zip(networks, params, strict=True)]
    gone, put = [], jax.device_put

    def seen(leaf, *more):
        gone.append(Leaf.gone)
        return put(np.asarray(leaf), *more)

    monkeypatch.setattr(jax, "device_put", seen)
    placed = execution.unmeasured(made[-1].at_levels(made), chunk=16).placed().classifier
    assert len(gone) == 6
    assert gone[-1] == gone[0]
    for own, after in zip(params, placed.by_level, strict=True):
        np.testing.assert_array_equal(after.params.weights, own * np.float32(0.5))


@pytest.mark.parametrize("order", [1, -1])
def test_a_chunk_that_is_not_given_fits_each_network(linear, monkeypatch, order):
    def wide(params, images):
        return linear_logits(params, images) + 0 * jnp.sum(jnp.zeros((len(images), 40_000)), axis=1, keepdims=True)

    both = [linear, dataclasses.replace(linear, apply_fn=wide)][::order]
    monkeypatch.setattr(devices, "memory", lambda mesh: 2**23)
    for chosen in (
        sampling.implementation_choice.choose(both[-1].at_levels(both), CASCADE, samples=0),
        execution.unmeasured(both[-1].at_levels(both)),
    ):
        assert chosen.chunk <= 2**23 // 2 // (4 * 4 * 40_000)


def test_predictions_are_those_of_the_networks_or_abstentions(linear, large, two, dataset):
    """Against the exact answers, by many votes."""
    images, every = data.to_unit(dataset.images), np.arange(24)
    shares = [
        sampling.count_votes(
            one, schemes.Gaussian(0.5 * level), images, indices=every, n=20_000, key=random_keys.root(9)
        )[:, :-1] / 20_000
        for one, level in zip((large, linear), CASCADE.levels, strict=True)
    ]  # fmt: skip
    sure = shares[0].max(axis=1) > 0.6
    truth = np.where(sure, shares[0].argmax(axis=1), shares[1].argmax(axis=1))
    made = predict(two, CASCADE, images, n=2000, alpha=0.01, seed=3, progress=False)
    named = made != confidence_bounds.ABSTAIN
    assert named.sum() > 8
    np.testing.assert_array_equal(made[named], truth[named])
    assert np.any(truth[named] != shares[1].argmax(axis=1)[named])
    known = idrc.SmoothedClassifier(two, CASCADE, n=500, n_predict=2000, alpha=0.01, chunk=64).predict(images, seed=4)
    assert np.all((known.classes == truth) | known.abstained)


def test_no_scheme_of_the_users_own_has_a_field_that_means_networks():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        by_level: tuple[float, ...] = (1.0, 2.0)

    with pytest.raises(ValueError, match=r"Expected fields of Mine with other names .* got by_level: rename"):
        guarantee._check_fields(Mine(), [])


@pytest.mark.parametrize("broken", [["a"], {"a": 1}, 3])
def test_a_manifest_with_a_damaged_network_is_one_line(linear, large, two, dataset, tmp_path, broken):
    certify(two, dataset, tmp_path, indices=range(2))
    path = tmp_path / "manifest.json"
    made = json.loads(path.read_text())
    made["guarantee"]["by_level"][0]["weights_sha256"] = broken
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match="manifest"):
        results.read_results(tmp_path)
