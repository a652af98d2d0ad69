import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from idrc_jax import data
from idrc_jax.training import moving_average
from idrc_jax.training.job import Job, RunOptions
from idrc_jax.training.recipe import Recipe
from idrc_jax.training.steps import State, descend


def job(facts, **more):
    return Job(
        description={"architecture": "x"}, train_set=data.load("synthetic", "train"),
        recipe=Recipe(epochs=3, batch=100), seed=7, start="", comparable=(), facts=facts, data=(),
        make_step=lambda optimiser, mesh, epoch: None, metrics=("loss",), **more,
    )  # fmt: skip


def test_a_description_tells_its_facts_in_the_order_of_older_files():
    classifier = job({"denoiser": {"steps": 1}, "scheme": {"name": "l1"}}).describe("abc")
    names = ["scheme", "recipe", "seed", "data", "data_sha256", "start", "denoiser"]
    assert list(classifier["training"]) == names
    assert classifier["training"]["start"] == {"weights_sha256": "abc"}
    assert (classifier["architecture"], classifier["training"]["seed"]) == ("x", 7)
    denoiser = job({"ema": 0.5}).describe("")
    assert list(denoiser["training"]) == ["recipe", "ema", "seed", "data", "data_sha256"]


def test_steps_are_whole_batches_of_every_epoch():
    assert (job({}).epoch_steps, job({}).steps) == (5, 15)


@pytest.mark.parametrize("averaged", [False, True])
def test_what_is_kept_are_all_tensors_or_the_average(averaged):
    params, stats, step = {"a": jnp.ones(1)}, {"b": jnp.zeros(1)}, jnp.zeros((), jnp.int32)
    beside = moving_average.first(params, stats) if averaged else stats
    assert set(job({}, averaged=averaged).kept(State(params, beside, (), step))) == {"a", "b"}
    if averaged:
        alone = State(params, {"a": jnp.zeros(1)}, (), step)
        assert float(job({}, averaged=True).kept(alone)["a"][0]) == 0


def test_a_step_of_descent_moves_the_params_alone_and_counts():
    optimiser = optax.sgd(0.5)
    params = {"w": jnp.asarray([1.0, 2.0])}
    state = State(params, {"mean": jnp.zeros(1)}, optimiser.init(params), jnp.asarray(4, jnp.int32))
    new = descend(state, optimiser, {"w": jnp.asarray([2.0, -2.0])}, {"mean": jnp.ones(1)})
    np.testing.assert_array_equal(new.params["w"], [0.0, 3.0])
    np.testing.assert_array_equal(new.stats["mean"], [1.0])
    assert int(new.step) == 5
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_options_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match=r"steps_per_dispatch >= 1"):
        RunOptions(steps_per_dispatch=0)
    with pytest.raises(ValueError, match=r"checkpoint_minutes >= 0"):
        RunOptions(checkpoint_minutes=-1.0)
