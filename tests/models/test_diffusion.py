import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrc_jax.models import diffusion
from idrc_jax.models.diffusion import Denoiser, Schedule

LINEAR = Schedule()
SIGMAS = (0.12, 0.25, 0.5, 1.0)


def signals(schedule):
    """Alpha-bar as Ho et al. and Nichol & Dhariwal write it down, by a product."""
    if schedule.kind == "cosine":
        f = np.cos((np.arange(schedule.steps + 1) / schedule.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
    return np.cumprod(1 - np.linspace(schedule.beta_start, schedule.beta_end, schedule.steps))


def denoiser(apply_fn, **more):
    return Denoiser(apply_fn=apply_fn, params=(), image_shape=(2, 2, 1), schedule=LINEAR, **more)


@pytest.mark.parametrize(("sigma", "time"), list(zip(SIGMAS, (69.58, 144.15, 258.09, 395.95), strict=True)))
def test_times_of_the_linear_schedule(sigma, time):
    assert LINEAR.time(sigma) == pytest.approx(time, abs=0.005)


@pytest.mark.parametrize("schedule", [LINEAR, Schedule(kind="cosine"), Schedule(steps=100, beta_end=0.1)])
def test_the_signal_is_the_product_of_the_steps(schedule):
    np.testing.assert_allclose([schedule.signal(t) for t in range(schedule.steps)], signals(schedule), rtol=1e-10)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_network_sees_images_of_the_variance_it_was_trained_on(kind, sigma):
    """Measured on what reaches the network, beside the signal interpolated from the product."""
    schedule, seen = Schedule(kind=kind), []

    def network(params, x, time):
        seen.append((np.asarray(x), float(time)))
        return x

    one = Denoiser(apply_fn=network, params=(), image_shape=(64, 64, 3), schedule=schedule, prediction="sample")
    image = np.random.default_rng(0).uniform(size=(64, 64, 3)).astype(np.float32)
    noise = np.random.default_rng(1).normal(scale=sigma, size=(40, 64, 64, 3)).astype(np.float32)
    one(image + noise, sigma=sigma)
    ((x, time),) = seen
    product = signals(schedule)
    a = np.exp(np.interp(time, np.arange(schedule.steps), np.log(product)))
    assert x.mean(0) == pytest.approx(np.sqrt(a) * (2 * image - 1), abs=6 * 2 * sigma * np.sqrt(a / 40))
    assert np.var(x - np.sqrt(a) * (2 * image - 1)) == pytest.approx(1 - a, rel=0.01)


def test_every_prediction_stands_for_the_clean_image():
    generator = np.random.default_rng(0)
    clean, noise = jnp.asarray(generator.normal(size=(2, 5, 4)), jnp.float32)
    for a in (0.999, 0.5, 0.01):
        x = np.sqrt(a) * clean + np.sqrt(1 - a) * noise
        predicted = {"epsilon": noise, "v": np.sqrt(a) * noise - np.sqrt(1 - a) * clean, "sample": clean}
        for name, value in predicted.items():
            np.testing.assert_allclose(diffusion.clean_estimate(name, value, x, a), clean, atol=3e-5)
        stepped = diffusion.ddim_step(clean, x, a, 0.7)
        np.testing.assert_allclose(stepped, np.sqrt(0.7) * clean + np.sqrt(0.3) * noise, atol=3e-5)


def gaussian_data(mean, spread):
    """The exact noise predictor for pixels drawn from N(mean, spread^2) in [-1, 1]."""
    log_noise = jnp.asarray(np.log(1 / signals(LINEAR) - 1), jnp.float32)

    def network(params, x, time):
        a = jax.nn.sigmoid(-jnp.interp(time, jnp.arange(1000.0), log_noise))
        return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * mean) / (a * spread**2 + 1 - a)

    return denoiser(network)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_more_steps_approach_the_limit_of_fine_steps(sigma):
    """For Gaussian data the limit is known: the noisy image's quantile in the noisy law, taken in the clean one."""
    mean, spread = 0.1, 0.2
    noisy = jnp.asarray(np.random.default_rng(0).normal(0.55, 0.1, size=(3, 2, 2, 1)), jnp.float32)
    a = 1 / (1 + 4 * sigma**2)
    x = np.sqrt(a) * (2 * noisy - 1)
    quantile = (x - np.sqrt(a) * mean) / np.sqrt(a * spread**2 + 1 - a)
    limit = (1 + mean + spread * quantile) / 2
    posterior = (1 + mean + np.sqrt(a) * spread**2 / (a * spread**2 + 1 - a) * (x - np.sqrt(a) * mean)) / 2
    one = gaussian_data(mean, spread)
    np.testing.assert_allclose(one(noisy, sigma=sigma), posterior, atol=2e-5)
    errors = [float(np.abs(one(noisy, sigma=sigma, steps=k) - limit).max()) for k in (1, 4, 16, 64, 256)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.02 * errors[0]


def test_a_denoised_image_of_another_shape_is_refused():
    schedule = diffusion.Schedule()
    for shape in ((2, 1, 1, 3), (2, 4, 4, 1), (2, 4, 4), (1, 4, 4, 3)):
        made = diffusion.Denoiser(lambda params, x, time, shape=shape: jnp.zeros(shape), (), (4, 4, 3), schedule)
        with pytest.raises(ValueError, match=r"Expected the denoiser to give \[2, 4, 4, 3\], got"):
            made(jnp.zeros((2, 4, 4, 3)), sigma=0.25)


def test_a_learned_variance_is_dropped_and_the_result_is_an_image():
    one = denoiser(lambda params, x, time: jnp.concatenate((x, 9 + x), -1), prediction="sample")
    noisy = jnp.asarray([-3.0, 0.5, 0.75, 4.0]).reshape(1, 2, 2, 1)
    a = 1 / (1 + 4 * 0.25**2)
    wanted = np.clip((np.sqrt(a) * (2 * noisy - 1) + 1) / 2, 0, 1)
    np.testing.assert_allclose(one(noisy, sigma=0.25), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(kind="sigmoid"), "Expected kind to be one of"),
        (lambda: Schedule(beta_start=0.1, beta_end=0.01), "Expected 0 < beta_start <= beta_end"),
        (
            lambda: LINEAR.time(0.001),
            r"noise level in \[0\.005, 78\.\d+\], which the diffusion schedule spans, got 0.001",
        ),
        (lambda: LINEAR.time(100.0), "got 100.0"),
        (lambda: denoiser(None).check(0.25, 0), "steps >= 1"),
        (lambda: denoiser(None, prediction="noise").check(0.25), "Expected prediction to be one of"),
        (
            lambda: denoiser(None, sigmas=(0.1, 0.5)).check(1.0),
            r"in \[0\.1, 0\.5\], for which the denoiser was trained",
        ),
        (
            lambda: denoiser(None, sigmas=(0.5, 0.5)).check(0.5, 2),
            r"levels are all >= 0\.5, .* got 0\.2\d+ in the last of 2",
        ),
    ],
)
def test_what_cannot_be_denoised_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.peers
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_steps_are_those_of_diffusers_scheduler(kind, prediction):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    named = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}[kind]
    told = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}[prediction]
    peer = diffusers.DDIMScheduler(beta_schedule=named, prediction_type=told, clip_sample=False)
    peer.set_timesteps(10)
    schedule = Schedule(kind=kind, beta_start=peer.config["beta_start"], beta_end=peer.config["beta_end"])
    # Diffusers multiplies float32 betas: it is the one that rounds.
    ours = [schedule.signal(t) for t in range(1000)]
    np.testing.assert_allclose(ours, peer.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7)
    generator = np.random.default_rng(0)
    for time in peer.timesteps.tolist()[1:]:
        x, predicted = generator.normal(size=(2, 1, 3, 4, 4)).astype(np.float32)
        wanted = peer.step(torch.tensor(predicted), time, torch.tensor(x)).prev_sample.numpy()
        a, a_next = ours[time], ours[time - 100] if time >= 100 else 1.0
        clean = diffusion.clean_estimate(prediction, jnp.asarray(predicted), jnp.asarray(x), a)
        np.testing.assert_allclose(diffusion.ddim_step(clean, jnp.asarray(x), a, a_next), wanted, rtol=1e-3, atol=1e-4)
