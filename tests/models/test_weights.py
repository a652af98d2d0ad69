import gc
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import nnx
from jax.sharding import PartitionSpec
from safetensors import safe_open
from safetensors.numpy import save_file
from small_networks import RESNET

from idrc_jax import models, training

DESCRIPTION = RESNET | {"shortcut": "projection"}


@pytest.fixture(scope="module")
def network():
    return models.build(DESCRIPTION, dtype="float32", rngs=nnx.Rngs(4))


@pytest.fixture
def saved(network, tmp_path):
    _, params, stats = models.split(network)
    path = tmp_path / "weights.safetensors"
    tensors = {name: np.asarray(value) for name, value in (params | stats).items()}
    models.save_weights(path, tensors, DESCRIPTION)
    return path


def rewrite(path, change):
    """Apply `change` to the tensors and metadata of a file."""
    with safe_open(path, framework="numpy") as handle:
        metadata = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def test_weights_come_back_as_the_same_function(network, saved):
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 8, 8, 1)), jnp.float32)
    for where in (saved, saved.parent, str(saved)):
        classifier = models.load_classifier(where)
        np.testing.assert_allclose(classifier(images), network(images), rtol=1e-4, atol=1e-5)
    assert (classifier.classes, classifier.image_shape, classifier.dtype) == (4, (8, 8, 1), "float32")
    assert models.load_classifier(saved, dtype="bfloat16").dtype == "bfloat16"


def test_loading_does_not_depend_on_the_batch_mates(saved):
    """BatchNorm is in inference mode: a certificate needs samples that do not see each other."""
    classifier = models.load_classifier(saved)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)), jnp.float32)
    np.testing.assert_allclose(classifier(images)[:1], classifier(images.at[1:].set(0.0))[:1], rtol=1e-6)


def test_half_precision_copies(saved, tmp_path):
    half = tmp_path / "half.safetensors"
    models.save_half(saved, half)
    assert half.stat().st_size < 0.6 * saved.stat().st_size
    full, small = models.load_classifier(saved), models.load_classifier(half)
    assert full.sha256 != small.sha256
    images = jnp.full((1, 8, 8, 1), 0.5)
    np.testing.assert_allclose(full(images), small(images), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("value", [-65600.0, np.nan])
def test_half_precision_copies_hold_what_float16_can(saved, tmp_path, value):
    rewrite(saved, lambda tensors, metadata: tensors["head.bias"].__setitem__(1, value))
    with pytest.raises(ValueError, match=r"at most 65504, .* got (65600|nan) in head\.bias: share"):
        models.save_half(saved, tmp_path / "half.safetensors")
    assert not (tmp_path / "half.safetensors").exists()


def test_hash_is_of_the_tensors(saved):
    before = models.load_classifier(saved).sha256
    rewrite(saved, lambda tensors, metadata: None)
    assert models.load_classifier(saved).sha256 == before
    rewrite(saved, lambda tensors, metadata: tensors["head.bias"].__setitem__(0, 9.0))
    assert models.load_classifier(saved).sha256 != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("head.bias"), r"missing \['head.bias'\]"),
        (lambda t, m: t.update(extra=np.zeros(2)), r"unexpected \['extra'\]"),
        (lambda t, m: t.update({"head.bias": np.zeros(5, np.float32)}), "head.bias of shape"),
        (lambda t, m: t["head.bias"].__setitem__(1, np.nan), "non-finite value in head.bias"),
        (lambda t, m: t["blocks.1.norm2.var"].__setitem__(3, -0.5), "variances >= 0 .* got -0.5 in blocks.1.norm2.var"),
        (
            lambda t, m: t["stem_norm.scale"].fill(3e38) or t["stem_norm.var"].fill(0),
            "BatchNorm folded in.* stem.kernel",
        ),
        (lambda t, m: m.pop("idrc_jax"), "without its description"),
        (lambda t, m: m.update(idrc_jax=json.dumps({"format": 9})), "format 1"),
        (lambda t, m: m.update(idrc_jax="{"), "description"),
        (
            lambda t, m: m.update(idrc_jax=json.dumps({"format": 1, "architecture": "resnet"})),
            "Expected image_shape",
        ),
    ],
)
def test_damaged_or_foreign_files_are_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        models.load_classifier(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": ["resnet"]}, "Expected architecture in .* to be a text"),
        ({"image_shape": 0.5}, "Expected image_shape in .* to be a list"),
        ({"image_shape": [8, 8]}, "Expected 3 values at image_shape"),
        ({"mean": ["synthetic"]}, r"Expected mean\.0 in .* to be a finite number"),
        ({"classes": 2.0}, "Expected classes in .* to be an integer"),
        ({"depth": 6 * 10**9 + 2}, "Expected a network of 6000000002 layers in .* tensors"),
        ({"training": {"scheme": "gaussian"}}, r"Expected training\.scheme in"),
        ("[" * 100_000, "Expected a readable description"),
        ("[]", "Expected a readable description"),
        ("3", "Expected a readable description"),
    ],
)
def test_descriptions_that_are_none_are_refused(saved, change, message):
    def put(_, metadata):
        whole = json.loads(metadata["idrc_jax"])
        metadata["idrc_jax"] = change if isinstance(change, str) else json.dumps(whole | change)

    rewrite(saved, put)
    with pytest.raises(ValueError, match=message):
        models.load_classifier(saved)


def test_truncated_and_missing_files_are_refused(saved, tmp_path):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"whole \.safetensors file"):
        models.load_classifier(saved)
    with pytest.raises(ValueError, match="Train first"):
        models.load_classifier(tmp_path / "nowhere")


def test_another_architecture_is_refused(saved):
    with pytest.raises(ValueError, match="depth = 20, got depth = 8"):
        models.load_classifier(saved, expect={"architecture": "resnet", "depth": 20})


def test_settings_of_a_run_are_kept(tmp_path):
    path = tmp_path / "train_config.json"
    training.same_or_refuse(path, {"depth": 8, "recipe": {"lr": 0.1, "mean": (0.5,)}})
    training.same_or_refuse(path, {"depth": 8, "recipe": {"lr": 0.1, "mean": [0.5]}})
    with pytest.raises(ValueError, match=r"recipe\.lr was 0\.1, is 0\.2"):
        training.same_or_refuse(path, {"depth": 8, "recipe": {"lr": 0.2, "mean": [0.5]}})


def test_training_checkpoints_keep_the_newest_two(tmp_path):
    store = training.TrainingCheckpoints(tmp_path / "checkpoints")
    assert store.latest() is None
    for step in (1, 5, 9):
        store.save(step, {"a": jnp.full(3, step)})
    store.save(9, {"a": jnp.zeros(3)})  # stored already
    assert store.latest() == 9
    np.testing.assert_array_equal(store.restore(9, {"a": jnp.zeros(3, int)})["a"], [9, 9, 9])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["5", "9"]
    store.close()


def with_a_byte_turned(content):
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 1]) + content[middle + 1 :]


DAMAGE = {
    "turned": lambda file: file.write_bytes(with_a_byte_turned(file.read_bytes())),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tasks of Orbax that failed unawaited
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.evidence)])
def test_a_damaged_training_checkpoint_is_never_restored_as_another_state(tmp_path, every):
    """Whatever file of it has another byte, is cut, emptied or removed: it is whole all the same, or refused.

    The largest file, or every one.
    """
    state = {"a": jax.random.normal(jax.random.key(0), (3000,)), "b": {"c": jnp.ones((2, 2)), "step": jnp.asarray(7)}}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    store = training.TrainingCheckpoints(tmp_path / "whole")
    store.save(7, state)
    store.close()
    refused = {}
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    if not every:
        files = [max(files, key=lambda file: (tmp_path / "whole" / file).stat().st_size)]
    for number, (file, kind) in enumerate((file, kind) for file in files for kind in DAMAGE):
        folder = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "whole", folder)
        DAMAGE[kind](folder / file)
        store = training.TrainingCheckpoints(folder)
        try:
            restored = store.restore(7, like)
        except ValueError as error:
            refused[kind] = str(error).replace(str(folder), "RUN")
        else:
            assert jax.tree.all(jax.tree.map(lambda one, other: bool((one == other).all()), restored, state))
        store.close()
    gc.collect()  # what such tasks leave is told here, and not in a later test
    assert refused.keys() == DAMAGE.keys()
    assert all(said.startswith("Expected a whole checkpoint in RUN/7, got: ") for said in refused.values())


def test_a_damaged_description_of_a_run_is_named(tmp_path):
    path = tmp_path / "train_config.json"
    for content in (b"", b"{", b"[1]", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^Expected .*train_config.json, got.* or use another workdir\.$"):
            training.same_or_refuse(path, {"depth": 8})


def test_fingerprints_tell_functions_apart_by_code_constants_and_params():
    def classifier(apply_fn, params):
        return models.Classifier(apply_fn, params, classes=2, image_shape=(2, 2, 1))

    def scaled(factor):
        constant = jnp.asarray(factor)
        return lambda params, images: images.reshape(len(images), -1)[:, :2] * constant + params["bias"]

    def jitted(factor):
        return jax.jit(scaled(factor))

    bias = {"bias": jnp.zeros(2)}
    made = [
        classifier(scaled(np.array([1.0, 2.0])), bias),
        classifier(scaled(np.array([1.0, 3.0])), bias),
        classifier(jitted(np.array([1.0, 3.0])), bias),
        classifier(jitted(np.array([1.0, 4.0])), bias),
        classifier(scaled(np.array([1.0, 2.0])), {"bias": jnp.ones(2)}),
        classifier(lambda params, images: images.reshape(len(images), -1)[:, 2:] + params["bias"], bias),
    ]
    prints = [models.fingerprint(one) for one in made]
    assert len(set(prints)) == len(made)
    assert models.fingerprint(classifier(scaled(np.array([1.0, 2.0])), bias)) == prints[0]


def _conditional(inner):
    return lambda images: jax.lax.cond(images.sum() > 1e9, lambda images: images[:, :2, 0, 0] * 0.0, inner, images)


def _sharded(inner):
    mesh = jax.make_mesh((1,), ("one",))
    return jax.shard_map(inner, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())


@pytest.mark.parametrize(
    "around", [jax.jit, jax.checkpoint, _conditional, _sharded, lambda inner: lambda images: jax.lax.map(inner, images)]
)
def test_fingerprints_see_constants_of_functions_within_functions(around):
    def made(weights):
        inner = jax.jit(lambda images: images.reshape(-1, 4)[:, :2] @ jnp.asarray(weights))
        around_it = around(lambda images: inner(images))
        return models.Classifier(
            lambda params, images: around_it(images).reshape(-1, 2), {}, classes=2, image_shape=(2, 2, 1)
        )

    first, same, other = (made(sign * np.eye(2, dtype=np.float32)) for sign in (1, 1, -1))
    assert models.fingerprint(first) == models.fingerprint(same) != models.fingerprint(other)


def test_fingerprints_see_random_keys_and_arrays_that_foreign_functions_take():
    def made(seed, attribute):
        def apply_fn(params, images):
            shape = jax.ShapeDtypeStruct((2,), jnp.float32)
            foreign = jax.ffi.ffi_call("nowhere", shape)(weights=attribute)
            return images.reshape(len(images), -1)[:, :2] + foreign + jax.random.normal(params["key"], (2,))

        return models.Classifier(apply_fn, {"key": jax.random.key(seed)}, classes=2, image_shape=(2, 2, 1))

    one = np.arange(2000.0)
    other = np.where(one == 1000, 7.0, one)  # where the text leaves out what is between
    prints = [models.fingerprint(made(seed, values)) for seed in (0, 1) for values in (one, other)]
    assert len(set(prints)) == 4
    assert models.fingerprint(made(0, one.copy())) == prints[0]


def test_a_network_that_calls_python_goes_by_its_own_name():
    def made(factor, sha256):
        def answer(images):
            return factor * np.asarray(images).reshape(len(images), -1)[:, :2]

        def apply_fn(params, images):
            return jax.pure_callback(answer, jax.ShapeDtypeStruct((len(images), 2), jnp.float32), images)

        return models.Classifier(apply_fn, {}, classes=2, image_shape=(2, 2, 1), sha256=sha256)

    with pytest.raises(ValueError, match=r"calls Python \(pure_callback\).* name them and the code by .* sha256"):
        models.fingerprint(made(1, ""))
    assert len({models.fingerprint(made(1, name)) for name in ("one", "two", "one")}) == 2


def test_fingerprints_do_not_depend_on_the_process(saved):
    code = f"from idrc_jax import models; print(models.fingerprint(models.load_classifier({str(saved)!r})))"
    answers = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        for _ in range(2)
    }
    assert len(answers) == 1
