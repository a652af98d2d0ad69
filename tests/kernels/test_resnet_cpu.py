"""The kernel against its plain-JAX twin, which test_folding.py holds against the NNX network."""

import functools
import logging
import os
import shutil
import subprocess
import sys

import built
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_convolution_cpu import exactly
from test_folding import fold, network, noisy

from idrc_jax import models, sampling
from idrc_jax.certificates import schemes
from idrc_jax.core import files
from idrc_jax.kernels import build, resnet_cpu
from idrc_jax.models import folding
from idrc_jax.sampling import devices, random_keys


@pytest.fixture(scope="module", autouse=True)
def _built():
    built.require(resnet_cpu)


@functools.cache
def both(depth=8, classes=5, shape=(8, 8, 3), shortcut="projection", half=False):
    """(kernel, its params, twin, its params)."""
    _, tensors, description = network(depth, classes, shape, shortcut)
    folded = fold(tensors, description)
    kernel, params = folding.resnet_by_kernel(folded, half=half)
    return jax.jit(kernel), params, jax.jit(folding.apply), params["plain"]


@pytest.mark.parametrize("shortcut", ["projection", "zero_pad"])
@pytest.mark.parametrize(
    ("depth", "classes", "shape"),
    [
        (8, 10, (32, 32, 3)),
        (20, 10, (32, 32, 3)),
        (8, 2, (8, 8, 1)),
        (8, 17, (9, 7, 3)),
        (14, 3, (20, 12, 4)),
        (8, 2, (4, 40, 1)),
    ],
)
def test_logits_are_the_twins_in_every_batch_size(depth, classes, shape, shortcut):
    kernel, params, twin, plain = both(depth, classes, shape, shortcut)
    images = noisy(25, shape)
    expected = np.asarray(twin(plain, images))
    for count in (1, 3, 8, 9, 25):
        ours = kernel(params, images[:count])
        np.testing.assert_allclose(ours, expected[:count], atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 7, 3)])
def test_in_bfloat16_it_rounds_where_the_twin_does(shape):
    """Errors against float32 are those of bfloat16, and kernel and twin are nearer to each other than to it."""
    kernel, params, twin, plain = both(20, 10, shape, "projection", True)
    full = both(20, 10, shape)
    images = noisy(64, shape)
    exact = np.asarray(full[0](full[1], images))
    ours, theirs = np.asarray(kernel(params, images)), np.asarray(twin(plain, images))
    error = np.sqrt(np.mean((theirs - exact) ** 2))
    assert 1e-4 * np.abs(exact).max() < error < 0.02 * np.abs(exact).max()
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 1.2 * error
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < error


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 3), (32, 32, 16), (32, 40, 3)])
def test_its_name_says_which_way_a_network_in_bfloat16_goes(shape):
    """What the tables and manifests record, as two ways differ by rounding."""
    flags = set(build.processor().split())
    amx = {"amx_tile", "amx_bf16", "avx512_bf16"} <= flags and shape == (32, 32, 3)
    assert resnet_cpu.name(shape, half=True) in {"resnet_cpu", *(["resnet_cpu, AMX"] if amx else [])}
    assert resnet_cpu.name(shape, half=False) == "resnet_cpu"


def test_an_images_logits_do_not_depend_on_its_batch():
    kernel, params, *_ = both(8, 10, (32, 32, 3))
    images = noisy(25, (32, 32, 3))
    whole = np.asarray(kernel(params, images))
    for first, last in ((0, 1), (3, 12), (24, 25)):
        np.testing.assert_array_equal(kernel(params, images[first:last]), whole[first:last])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("half", [False, True])
def test_what_is_no_number_stays_with_its_image(value, half):
    kernel, params, *_ = both(8, 5, (8, 8, 3), half=half)
    images = noisy(12, (8, 8, 3)).at[5, 2, 3, 1].set(value)
    finite = np.isfinite(kernel(params, images)).all(axis=1)
    np.testing.assert_array_equal(finite, np.arange(12) != 5)


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 7, 3)])
@pytest.mark.parametrize("half", [False, True])
def test_weights_that_are_no_numbers_leave_no_logit_in_either(shape, half):
    """In whatever layer a channel has them; a ReLU that took them for 0 would make a confident network of it."""
    _, tensors, description = network(8, 5, shape)
    folded, images = fold(tensors, description), noisy(9, shape)
    for name in [name for name in folded if name.endswith((".kernel", ".bias"))]:
        poisoned = folded | {name: folded[name].copy()}
        poisoned[name][..., 1] = np.nan
        kernel, params = folding.resnet_by_kernel(poisoned, half=half)
        for logits in (jax.jit(kernel)(params, images), jax.jit(folding.apply)(params["plain"], images)):
            lost = np.isnan(logits)
            assert (lost[:, 1] if name.startswith("head") else lost).all(), name


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["stem.bias", "blocks.2.conv2.kernel"])
def test_weights_that_are_no_numbers_win_no_vote(half, name):
    _, tensors, description = network(8, 5, (32, 32, 3))
    folded = fold(tensors, description)
    folded[name][..., 1] = np.nan
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    kernel, params = folding.resnet_by_kernel(folded, half=half)
    for apply_fn, weights in ((kernel, params), (folding.apply, params["plain"])):
        votes = sampling.count_votes(
            models.Classifier(apply_fn, weights, 5, (32, 32, 3)),
            schemes.Gaussian(sigma=0.5), images,
            indices=np.arange(2), n=64, key=random_keys.root(0), mesh=devices.mesh(1),
        )  # fmt: skip
        assert votes.tolist() == [[0, 0, 0, 0, 0, 64]] * 2


def test_gradients_are_the_twins():
    kernel, params, twin, plain = both()
    images = noisy(3, (8, 8, 3))

    def loss(apply_fn, weights, x):
        return jnp.sum(apply_fn(weights, x)[:, 1] ** 2)

    ours = jax.grad(functools.partial(loss, kernel, params))(images)
    theirs = jax.grad(functools.partial(loss, twin, plain))(images)
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())
    weights = jax.grad(lambda p: loss(kernel, p, images))(params)["plain"]
    expected = jax.grad(lambda p: loss(twin, p, images))(plain)
    np.testing.assert_allclose(weights["stem.kernel"], expected["stem.kernel"], rtol=1e-3, atol=1e-3)


def exact_gradients(folded, images, weights):
    """Gradients of sum(weights * logits) with respect to the images, in float64, and how near to 0 a cut is.

    A flat list of layers: what each does is undone in reverse.
    """
    folded = {name: np.asarray(value, np.float64) for name, value in folded.items()}
    nearest, undo = [np.inf], []

    def conv(name, x, stride):
        kernel = folded[f"{name}.kernel"]
        shape = (len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride), kernel.shape[-1])
        return exactly(x, kernel, np.zeros(shape), stride)[0] + folded[f"{name}.bias"]

    def conv_back(name, x, gradient, stride):
        return exactly(x, folded[f"{name}.kernel"], gradient, stride)[1]

    def cut(x):
        nearest[0] = min(nearest[0], np.abs(x).min())
        return np.maximum(x, 0)

    x = (images.astype(np.float64) - folded["mean"]) / folded["std"]
    first, stem = x, cut(conv("stem", x, 1))
    x = stem
    for block in range(sum(name.endswith("conv1.kernel") for name in folded)):
        name = f"blocks.{block}"
        features_in, features = folded[f"{name}.conv1.kernel"].shape[2:]
        stride = features // features_in
        inner = cut(conv(f"{name}.conv1", x, stride))
        y = conv(f"{name}.conv2", inner, 1)
        projects, more = f"{name}.projection.kernel" in folded, (features - features_in) // 2
        if projects:
            shortcut = conv(f"{name}.projection", x, stride)
        else:
            shortcut = np.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((more, more),))
        out = cut(y + shortcut)

        def back(g, name=name, x=x, inner=inner, out=out, stride=stride, projects=projects, more=more):
            g = g * (out > 0)
            to_x = conv_back(f"{name}.conv1", x, conv_back(f"{name}.conv2", inner, g, 1) * (inner > 0), stride)
            if projects:
                return to_x + conv_back(f"{name}.projection", x, g, stride)
            to_x[:, ::stride, ::stride] += g[..., more : more + x.shape[-1]]
            return to_x

        undo.append(back)
        x = out
    g = np.broadcast_to((weights @ folded["head.kernel"].T)[:, None, None] / (x.shape[1] * x.shape[2]), x.shape)
    for back in reversed(undo):
        g = back(g)
    return conv_back("stem", first, g * (stem > 0), 1) / folded["std"], nearest[0]


@pytest.mark.parametrize(
    ("depth", "shape", "shortcut"),
    [
        (8, (8, 8, 3), "projection"),
        (14, (16, 8, 1), "zero_pad"),
        (8, (9, 7, 4), "projection"),
        (8, (6, 10, 3), "zero_pad"),
    ],
)
def test_gradients_of_images_are_those_of_float64_in_every_batch_size(depth, shape, shortcut):
    _, tensors, description = network(depth, 5, shape, shortcut)
    folded = fold(tensors, description)
    kernel, params = folding.resnet_by_kernel(folded, half=False)
    random = np.random.default_rng(0)
    images, kept = [], 0
    weights = random.normal(size=(200, 5)).astype(np.float32)
    while kept < 11:  # images without a value so near to 0 that rounding could cut it
        image = random.normal(0.5, 0.3, (1, *shape)).astype(np.float32)
        exact, nearest = exact_gradients(folded, image, weights[kept : kept + 1])
        if nearest > 3e-6:
            images.append((image, exact))
            kept += 1
    pixels, expected = (np.concatenate(part) for part in zip(*images, strict=True))
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(kernel(params, x) * w)))
    text = gradient.lower(pixels, weights[:11]).compile().as_text()
    assert "idrc_resnet_gradient" in text
    assert "convolution(" not in text  # the twin's, for the gradients of params, is dropped
    for count in (1, 8, 11):
        ours = gradient(pixels[:count], weights[:count])
        np.testing.assert_allclose(ours, expected[:count], atol=2e-5 * np.abs(expected).max())


def test_it_runs_under_vmap_pmap_and_shard_map():
    kernel, params, *_ = both()
    images = noisy(8, (8, 8, 3))
    expected = np.asarray(kernel(params, images))
    pairs = images.reshape(4, 2, 8, 8, 3)
    stacked = jax.vmap(kernel, in_axes=(None, 0))(params, pairs)
    np.testing.assert_array_equal(stacked.reshape(8, -1), expected)
    mapped = jax.pmap(kernel, in_axes=(None, 0))(params, pairs)
    np.testing.assert_array_equal(np.asarray(mapped).reshape(8, -1), expected)
    split = jax.shard_map(kernel, mesh=devices.mesh(4), in_specs=(P(), P(devices.AXIS)), out_specs=P(devices.AXIS))
    np.testing.assert_array_equal(jax.jit(split)(params, images), expected)


def test_votes_are_those_of_the_plain_network(tmp_path):
    _, tensors, description = network(8, 5, (8, 8, 3))
    models.save_weights(tmp_path / "weights.safetensors", tensors, description)
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    votes = {}
    for kernel in ("auto", "xla"):
        classifier = models.load_classifier(tmp_path, kernel=kernel)
        votes[classifier.kernel] = sampling.count_votes(
            classifier, schemes.Gaussian(sigma=0.5), images, indices=np.arange(2), n=2000, key=random_keys.root(0)
        )
    assert set(votes) == {"resnet_cpu", "xla"}
    assert (votes["xla"] > 0).sum() > 5
    assert np.abs(votes["resnet_cpu"] - votes["xla"]).sum() <= 2  # a near-tie may fall to either side


def test_the_plain_network_is_the_kernels_alternative(tmp_path):
    _, tensors, description = network(8, 5, (8, 8, 3))
    models.save_weights(tmp_path / "weights.safetensors", tensors, description)
    for dtype in ("float32", "bfloat16"):
        ours = models.load_classifier(tmp_path, dtype=dtype)
        plain = models.load_classifier(tmp_path, dtype=dtype, kernel="xla")
        assert [one.kernel for one in ours.implementations] == ["resnet_cpu", "xla"]
        assert plain.alternatives == ()
        images = noisy(3, (8, 8, 3))
        np.testing.assert_array_equal(ours.reference(images), plain(images))
        assert models.fingerprint(ours) == models.fingerprint(plain)


def test_weights_of_another_network_are_refused():
    kernel, params, *_ = both()
    with pytest.raises(Exception, match="as many weights as the network has"):
        kernel(params | {"packed": params["packed"][:-16]}, noisy(2, (8, 8, 3))).block_until_ready()


@pytest.mark.parametrize(
    ("compiler", "reason"), [("/nowhere/c++", "No such file"), ("false", "returned non-zero"), ("", "no C.. compiler")]
)
def test_without_a_compiler_the_plain_network_runs(monkeypatch, tmp_path, caplog, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.register.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "idrc_jax"):
            _, tensors, description = network()
            models.save_weights(tmp_path / "weights.safetensors", tensors, description)
            assert models.load_classifier(tmp_path).kernel == "xla"
        assert len(caplog.messages) == 1
        assert "No kernel of resnet_cpu.cc" in caplog.text
    finally:
        build.register.cache_clear()


def test_a_library_is_built_once_for_each_kind_of_processor(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "empty.cc"
    source.write_text('extern "C" int IdrcSelfTest() { return 0; }\n')
    first = build._compiled(source)
    written = first.stat().st_mtime_ns
    assert build._compiled(source) == first
    assert first.stat().st_mtime_ns == written
    monkeypatch.setattr(build, "processor", lambda: "another")
    assert build._compiled(source) != first


@pytest.mark.parametrize(
    ("body", "reason"),
    [("return 3;", "failed its self-test"), ("__builtin_trap();", "crashed in its self-test, by signal")],
)
def test_a_library_that_crashes_or_computes_wrongly_is_not_used(monkeypatch, tmp_path, caplog, body, reason):
    """As an instruction that the processor lacks, or a broken compiler, would make it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "bad.cc"
    source.write_text(f'extern "C" int IdrcSelfTest() {{ {body} }}\n')
    assert not build.register.__wrapped__(str(source), ())
    assert len(caplog.messages) == 1
    assert reason in caplog.text
    assert not list((tmp_path / "idrc_jax").glob("*"))


@pytest.mark.parametrize(
    ("source", "header", "right", "wrong"),
    [
        ("convolution_cpu.cc", "include/simd.h", "std::memcpy(to, &value", "value *= NAN; std::memcpy(to, &value"),
        ("network_cpu.cc", "include/simd.h", "std::memcpy(to, &value", "value *= NAN; std::memcpy(to, &value"),
        ("rounded_normal_cpu.cc", "rounded_normal_cpu.cc", "{{13, 15", "{{13, 16"),
    ],
)
def test_self_tests_see_what_is_no_number_and_other_random_bits(
    monkeypatch, tmp_path, caplog, source, header, right, wrong
):
    sources = tmp_path / "cpp"
    shutil.copytree(build.SOURCES, sources)
    text = (sources / header).read_text()
    assert right in text
    (sources / header).write_text("#include <cmath>\n" + text.replace(right, wrong, 1))
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "_FLAGS", tuple(flag.replace("-O3", "-O1") for flag in build._FLAGS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not build.register.__wrapped__(source, ())
    assert "failed its self-test" in caplog.text, caplog.text


def test_a_width_that_no_machine_has_is_refused(monkeypatch, caplog):
    monkeypatch.setenv("IDRC_VECTOR_BITS", "1024")
    assert not build.register.__wrapped__("resnet_cpu.cc", ())
    assert "expected IDRC_VECTOR_BITS of 128, 256 or 512, got '1024'" in caplog.text


SAME = """
import jax, jax.numpy as jnp, numpy as np
from idrc_jax.kernels import convolution_cpu, resnet_cpu
from test_convolution_cpu import OPTIONS
from test_resnet_cpu import both, noisy
assert resnet_cpu.available() and convolution_cpu.available()
for shape in ((32, 32, 3), (9, 7, 3), (20, 12, 3)):
    kernel, params, twin, plain = both(8, 10, shape)
    images = noisy(19, shape)
    expected = np.asarray(twin(plain, images))
    np.testing.assert_allclose(kernel(params, images), expected, atol=1e-5 * np.abs(expected).max())
for channels, features in ((16, 16), (32, 32), (64, 64), (48, 112)):
    x, w = noisy(9, (8, 8, channels)), noisy(3, (3, channels, features)) / channels
    pair = [
        jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w, (1, 1), ((1, 1), (1, 1)), **OPTIONS))), (0, 1))(x, w)
        for conv in (convolution_cpu.conv_general_dilated, jax.lax.conv_general_dilated)
    ]
    for ours, theirs in zip(*pair):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
print("same")
"""


@pytest.mark.evidence
def test_vectors_of_avx2_give_the_same_logits_and_gradients():
    environment = os.environ | {
        "IDRC_VECTOR_BITS": "256", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SAME], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "same", done.stderr


def test_without_a_home_the_plain_network_runs(monkeypatch, caplog):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(files.Path, "home", homeless)
    build.register.cache_clear()
    try:
        assert not resnet_cpu.available()
        assert "home directory" in caplog.text
    finally:
        build.register.cache_clear()
