"""PyTorch's checkpoints in and out, beside the networks themselves in PyTorch."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from idrc_jax import certification, data, models
from idrc_jax.certificates import schemes
from idrc_jax.commands import export, import_network
from idrc_jax.interop import exporting, importing, layouts, torch_files

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
COHEN = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def images(count, size, seed=0):
    """Noisy ones, that leave [0, 1]."""
    return np.random.default_rng(seed).normal(0.5, 0.5, size=(count, size, size, 3)).astype(np.float32)


def jitted(classifier):
    return lambda batch: np.asarray(jax.jit(classifier.apply_fn)(classifier.params, batch))


def run(monkeypatch, module, name, *arguments):
    """The command's exit status."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return ended.value.code


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory):
    """CIFAR-10's test set."""
    folder = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, shared / "cifar10/unpack.py", folder], check=True)
    return data.load("cifar10", "test", directory=str(folder))


@pytest.mark.peers
@pytest.mark.shared
@pytest.mark.parametrize(("depth", "name", "accuracy"), [(20, "12fca82f", 91.73), (56, "4bfd9763", 93.39)])
def test_published_networks_are_the_same_functions(shared, published, tmp_path, monkeypatch, depth, name, accuracy):
    torch = pytest.importorskip("torch")
    from torch_networks import CifarResNet, Normalise, logits

    file = shared / f"weights/resnet{depth}-{name}.th"
    moments = ["--mean", *IMAGENET["mean"], "--std", *IMAGENET["std"]]
    assert (
        run(monkeypatch, import_network, "x", file, "--arch", f"cifar_resnet{depth}", *moments, "--out", tmp_path) == 0
    )
    classify = jitted(models.load_classifier(tmp_path))
    made = np.concatenate([classify(data.to_unit(published.images[k : k + 1000])) for k in range(0, 10_000, 1000)])
    assert 100 * np.mean(made.argmax(1) == published.labels) == pytest.approx(accuracy, abs=0.02)

    network = CifarResNet(depth, option_a=True)
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    whole = torch.nn.Sequential(Normalise(*IMAGENET.values()), network).eval()
    np.testing.assert_allclose(made[:1000], logits(whole, data.to_unit(published.images[:1000])), atol=1e-4, rtol=0)


def torch_network(arch):
    from torch_networks import CifarResNet, ResNet50, randomise

    return randomise(ResNet50() if arch == "resnet50" else CifarResNet(int(arch[12:]), option_a=False))


@pytest.mark.peers
@pytest.mark.parametrize(("arch", "size", "wrapper"), [("cifar_resnet110", 32, ""), ("resnet50", 64, "module.")])
def test_cohens_files_in_and_out(tmp_path, arch, size, wrapper):
    """A Sequential of normalisation and network, the second in DataParallel; then back to PyTorch, exactly."""
    torch = pytest.importorskip("torch")
    from torch_networks import Normalise, logits

    network = torch_network(arch)
    whole = torch.nn.Sequential(Normalise(*COHEN), network).eval()
    state = {key if key[0] == "0" else f"1.{wrapper}{key[2:]}": value for key, value in whole.state_dict().items()}
    torch.save({"epoch": 90, "arch": arch, "state_dict": state, "optimizer": {}}, tmp_path / "checkpoint.pth.tar")
    tensors, described = importing.import_network(tmp_path / "checkpoint.pth.tar")
    assert (tuple(described["mean"]), tuple(described["std"])) == COHEN
    assert described["normalisation"].endswith("from the file")
    assert described["classes"] == network.fc.out_features
    models.save_weights(tmp_path / "weights.safetensors", tensors, described)
    classifier = models.load_classifier(tmp_path)
    batch = images(4, size)
    expected = logits(whole, batch)
    assert expected.std() > 0.3
    np.testing.assert_allclose(jitted(classifier)(batch), expected, atol=1e-4, rtol=0)

    for suffix in ("pth", "safetensors"):
        target = tmp_path / f"back.{suffix}"
        exporting.export_weights(tmp_path, target)
        again, of = importing.import_network(target)
        assert {**of, "imported": 0} == {**described, "imported": 0}
        assert again.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(again[name], value)
    twin = torch_network(arch)
    for value in twin.state_dict().values():
        value.zero_()
    twin.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"])
    np.testing.assert_array_equal(logits(torch.nn.Sequential(Normalise(*COHEN), twin), batch), expected)


@pytest.mark.peers
@pytest.mark.parametrize("shortcut", ["zero_pad", "projection"])
def test_our_networks_run_in_pytorch(tmp_path, shortcut):
    """Not trained elsewhere: akamaster's names with zero padding, Cohen's with projections."""
    torch = pytest.importorskip("torch")
    from torch_networks import CifarResNet, Normalise, logits

    file = ours(tmp_path, shortcut=shortcut)
    exporting.export_weights(file, tmp_path / "out.pt")
    read = torch.load(tmp_path / "out.pt", weights_only=True)
    network = CifarResNet(8, 7, option_a=shortcut == "zero_pad")
    network.load_state_dict(read["state_dict"])
    whole = torch.nn.Sequential(Normalise(read["mean"], read["std"]), network).eval()
    batch = images(3, 32)
    expected = jitted(models.load_classifier(file))(batch)
    np.testing.assert_allclose(logits(whole, batch), expected, atol=1e-4, rtol=0)


@pytest.mark.peers
def test_the_resnet50_of_these_tests_is_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch_networks import ResNet50, logits, randomise

    peer = randomise(transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)))
    twin = ResNet50().eval()
    # Same layers in another order: each has its fellow of the same shape by the order of its kind.
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)
    short = {"downsample": 0, "shortcut": 0}

    def layers(network):
        named = [(name, one) for name, one in network.named_modules() if isinstance(one, kinds)]
        main = [one for name, one in named if not any(word in name for word in short)]
        return [*main, *[one for name, one in named if any(word in name for word in short)]]

    def by_kind(network):
        return [one for kind in kinds for one in layers(network) if isinstance(one, kind)]

    for mine, theirs in zip(by_kind(twin), by_kind(peer), strict=True):
        mine.load_state_dict(theirs.state_dict())
    batch = images(2, 64)
    with torch.no_grad():
        expected = peer(torch.tensor(batch).permute(0, 3, 1, 2)).logits.numpy()
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits(twin, batch), expected, atol=1e-4, rtol=0)


def ours(folder, **changed):
    """A file of this project with batch normalisation that has seen something."""
    description = {
        "architecture": "resnet", "depth": 8, "classes": 7, "image_shape": [32, 32, 3], "shortcut": "projection",
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "dtype": "float32", **changed,
    }  # fmt: skip
    _, params, stats = models.split(models.build(description, dtype="float32", rngs=nnx.Rngs(1)))
    generator = np.random.default_rng(0)
    tensors = {name: np.asarray(value, np.float32) for name, value in (params | stats).items()}
    for name in tensors:
        if "norm" in name:
            tensors[name] = generator.uniform(0.5, 1.5, tensors[name].shape).astype(np.float32)
    models.save_weights(folder / "ours.safetensors", tensors, description)
    return folder / "ours.safetensors"


@pytest.fixture
def file(tmp_path):
    """A small network under PyTorch's names, without PyTorch; its tensors as `file` and metadata can be changed."""
    exporting.export_weights(ours(tmp_path), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


ABOUT = {"arch": "cifar_resnet8", **IMAGENET}


def rewrite(file, change, about):
    tensors = load_file(file)
    change(tensors)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()},
        file,
        metadata={"checkpoint": json.dumps(about)},
    )


def test_safetensors_need_no_pytorch(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    tensors, described = importing.import_network(file)
    original, before = models.read_weights(tmp_path / "ours.safetensors")
    assert tensors.keys() == original.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(tensors[name], value)
    assert {**before, **described} == described
    monkeypatch.setattr(torch_files.Path, "is_file", lambda self: True)
    with pytest.raises(ValueError, match=r"pip install '\.\[torch\]' in the checkout"):
        torch_files.read(tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"pip install '\.\[torch\]' in the checkout"):
        exporting.export_weights(tmp_path / "ours.safetensors", tmp_path / "net.pth")


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def put(name, value):
    return lambda tensors: tensors.update({name: value(tensors[name])})


def nothing(tensors):
    pass


def prefix(before, **beside):
    """All names with that before them, and tensors without it."""

    def change(tensors):
        named = {f"{before}{name}": tensors.pop(name) for name in list(tensors)}
        tensors.update(named | beside)

    return change


def akamaster(tensors):
    for name in list(tensors):
        if "downsample" in name:
            del tensors[name]
        elif name.startswith("fc."):
            tensors[name.replace("fc.", "linear.")] = tensors.pop(name)


REFUSED = [
    (rename("bn1.weight", "bn1.wait"), ABOUT, [], "missing: bn1.weight; unexpected: bn1.wait"),
    (rename("fc.bias", "fc.bia"), ABOUT, [], "Expected a tensor fc.bias with 1 axes in"),
    (
        put("layer2.0.conv1.weight", lambda v: v.transpose(1, 0, 2, 3)),
        ABOUT,
        [],
        "layer2.0.conv1.weight of shape (32, 16",
    ),
    (put("fc.weight", lambda v: v.T), ABOUT, [], "fc.weight of shape (7, 64) in"),
    (put("fc.bias", lambda v: v[:3]), ABOUT, [], "fc.weight of shape (3, 64) in"),
    (put("bn1.bias", lambda v: v * np.nan), ABOUT, [], "non-finite value in bn1.bias"),
    (put("bn1.bias", lambda v: v.astype(np.int32)), ABOUT, [], "Expected floats in bn1.bias"),
    (nothing, ABOUT | {"arch": "cifar_resnet20"}, [], "Expected 3 + 3 + 3 blocks in layer1, layer2 ... of"),
    (nothing, ABOUT | {"arch": "resnet50"}, [], "Expected 3 + 4 + 6 + 3 blocks"),
    (nothing, ABOUT | {"arch": "vgg"}, [], "to be resnet50 (ImageNet's), or cifar_resnetN"),
    (nothing, ABOUT | {"arch": "cifar_resnet21"}, [], "N = 6n + 2"),
    (nothing, IMAGENET, [], "does not name its architecture"),
    (nothing, ABOUT, ["--arch", "cifar_resnet20"], "Expected --arch cifar_resnet8, as"),
    (nothing, ABOUT, ["--classes", "10"], "Expected a head of 10 classes"),
    (
        lambda tensors: tensors.update({name: tensors[name][:1] for name in ("fc.weight", "fc.bias")}),
        ABOUT,
        [],
        "Expected at least 2 classes in",
    ),
    (nothing, ABOUT, ["--mean", "0", "--std", "1"], "Expected no --mean and --std"),
    (nothing, {"arch": "cifar_resnet8"}, [], "Expected --mean and --std of the images' normalisation"),
    (nothing, {"arch": "cifar_resnet8"}, ["--mean", "0.5"], "Expected a std for each of 3 channels"),
    (nothing, {"arch": "cifar_resnet8"}, ["--mean", "0.5", "--std", "0"], "std > 0"),
    (nothing, {"arch": "cifar_resnet8"}, ["--mean", "nan", "--std", "1"], "Expected a mean for each"),
    (nothing, {"arch": "cifar_resnet8", "mean": [0.5] * 3}, [], "got only mean"),
    (nothing, ABOUT, ["--sigma", "3"], "Unrecognized arguments: --sigma 3"),
    (nothing, ABOUT, ["--size", "-8"], "Expected --size >= 0, got -8"),
    (put("layer2.0.bn2.running_var", lambda v: -v), ABOUT, [], "Expected variances >= 0 in"),
    (nothing, {"arch": "cifar_resnet8"}, ["--mean", "125.3", "--std", "63"], "divide those of a scale of 0 to 255 by"),
    (nothing, {"arch": "cifar_resnet8"}, ["--mean", "0.5", "--std", "63"], "Expected a mean within [0, 1] and a std"),
    (nothing, {"arch": "cifar_resnet8"}, ["--mean", "-0.5", "--std", "1"], "Expected a mean within [0, 1] and a std"),
    (nothing, ABOUT | {"mean": [125.3] * 3, "std": [63.0] * 3}, [], "divide those of a scale of 0 to 255 by 255"),
    (prefix("net.", n_averaged=np.zeros(1, np.int64)), ABOUT, [], "n_averaged, net.bn1.bias, net.bn1.running_mean"),
]


@pytest.mark.parametrize(("change", "about", "arguments", "message"), REFUSED)
def test_doubtful_files_are_refused_in_one_line(file, monkeypatch, capsys, change, about, arguments, message):
    rewrite(file, change, about)
    out = file.parent / "out"
    assert run(monkeypatch, import_network, "idrc-import", file, "--out", out, *arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not out.exists()


def test_what_the_file_says_is_enough(file, monkeypatch, capsys):
    rewrite(file, akamaster, ABOUT)
    out = file.parent / "new" / "out"
    assert run(monkeypatch, import_network, "idrc-import", file, "--out", out, "--size", "16", "--classes", "7") == 0
    assert "Imported cifar_resnet8: 7 classes, images 16x16x3, normalised by mean [0.485" in capsys.readouterr().out
    classifier = models.load_classifier(out)
    assert (classifier.image_shape, classifier.description["shortcut"]) == ((16, 16, 3), "zero_pad")
    assert [path.name for path in out.iterdir()] == ["weights.safetensors"]
    assert run(monkeypatch, import_network, "idrc-import", file, "--out", out) == 1
    assert "choose another --out" in capsys.readouterr().err


WRAPPERS = ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.model.", "1.module."]


WRAPPED = [*map(prefix, WRAPPERS), rename("layer1.0.conv1.weight", "layer1.0._orig_mod.conv1.weight")]


@pytest.mark.parametrize("change", WRAPPED)
def test_the_names_of_wrappers_are_taken_off(file, change):
    expected, _ = importing.import_network(file)
    rewrite(file, change, ABOUT)
    got, _ = importing.import_network(file)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize(("kind", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8)])
def test_types_that_are_no_plain_floats_are_refused_by_name(tmp_path, kind, size):
    about = {"conv1.weight": {"dtype": kind, "shape": [4], "data_offsets": [0, 4 * size]}}
    header = json.dumps(about).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * size))
    with pytest.raises(
        ValueError, match=rf"floats of 16 bits or more in .*x\.safetensors, got conv1\.weight of {kind}"
    ):
        torch_files.read(path)
    with pytest.raises(ValueError, match=r"Expected weights written by idrc_jax, got .*x\.safetensors"):
        models.read_weights(path)


def test_the_guarantee_holds_the_normalisation(file, tmp_path):
    """It is not among the hashed tensors, and another one is another network."""
    dataset, settings = data.load("synthetic", "test"), certification.Settings()
    made = []
    for number, mean in enumerate(([0.1, 0.2, 0.3], [0.1, 0.2, 0.4])):
        rewrite(file, nothing, ABOUT | {"mean": mean})
        (tmp_path / f"{number}").mkdir()
        models.save_weights(tmp_path / f"{number}/weights.safetensors", *importing.import_network(file))
        classifier = models.load_classifier(tmp_path / f"{number}")
        scheme = schemes.Gaussian(sigma=0.5)
        made.append(certification.describe_guarantee(classifier, scheme, dataset, np.arange(3), settings))
    assert made[0]["weights_sha256"] == made[1]["weights_sha256"]
    assert [one["mean"][2] for one in made] == [0.3, 0.4]


def test_a_truncated_safetensors_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"whole \.safetensors file"):
        importing.import_network(file)
    with pytest.raises(ValueError, match="no file"):
        importing.import_network(file.parent / "nowhere.pth")


@pytest.mark.peers
def test_a_pickle_that_would_run_code_does_not(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save(
            {"arch": "cifar_resnet20", "state_dict": {"a": torch.zeros(2)}, "trap": Trap()},
            path,
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(ValueError, match=r"would run code, \w+\.open"):
            importing.import_network(path)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"would run code, torch\.nn\.modules\.linear\.Linear"):
        importing.import_network(tmp_path / "module.pth")
    assert not (tmp_path / "sprung").exists()
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ValueError, match=r"PyTorch >= 2\.6"):
        importing.import_network(tmp_path / "module.pth")


@pytest.mark.peers
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.999])
def test_truncated_torch_files_are_refused(tmp_path, zipped, kept):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.randn(4000)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(ValueError, match=r"Expected a (whole )?checkpoint") as raised:
        torch_files.read(path)
    assert "\n" not in str(raised.value)


@pytest.mark.peers
def test_what_is_no_state_dict_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    for number, (content, message) in enumerate(
        [
            ({"net": {"a": torch.zeros(1)}, "epoch": 3}, "got net, epoch"),
            ([torch.zeros(1)], "got list"),
            ({}, "got nothing"),
            ({"a": torch.zeros(2, 2).to_sparse()}, "sparse"),
            ({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, "got a of torch.float8_e4m3fn"),
            ({"a": torch.zeros(2, device="meta")}, "on meta"),
            ({1: torch.zeros(2), 2: torch.zeros(2)}, "got 1, 2"),
        ]
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(ValueError, match=message):
            torch_files.read(tmp_path / f"{number}.pt")


@pytest.mark.peers
@pytest.mark.parametrize(
    ("mean", "message"),
    [
        ({"x": 1}, "Expected numbers as mean in .*x\\.pt, got dict"), ("abc", "numbers as mean in .*x\\.pt, got str"),
        ("0.5", "got str"), ([[0.5], [0.5, 0.5]], "got list"),
        ([0.5, 0.4, 0.5], r"one mean in .*x\.pt, got \(0.5, 0.4, 0.5\) beside the tensors and \(0.5, 0.5, 0.5\) among"),
    ],
)  # fmt: skip
def test_a_normalisation_that_is_none_or_two_is_refused(tmp_path, mean, message):
    torch = pytest.importorskip("torch")
    state = {"0.means": torch.tensor([0.5] * 3), "0.sds": torch.tensor([0.2] * 3), "1.conv1.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "mean": [0.5] * 3, "std": torch.tensor([0.2] * 3)}, tmp_path / "x.pt")
    assert torch_files.read(tmp_path / "x.pt").mean == (0.5, 0.5, 0.5)
    torch.save({"state_dict": state, "mean": mean, "std": [0.2] * 3}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as raised:
        torch_files.read(tmp_path / "x.pt")
    assert "\n" not in str(raised.value)


@pytest.mark.peers
def test_wrappers_and_precisions(tmp_path):
    """bfloat16 and float64 become float32; the outer DataParallel, the inner one and the normalisation come off."""
    torch = pytest.importorskip("torch")
    values = {"conv1.weight": torch.randn(2, 3).bfloat16(), "fc.bias": torch.randn(2).double()}
    values["fc.weight"] = torch.nn.Parameter(torch.randn(2))  # as state_dict(keep_vars=True) has it
    for prefix, norm in (("", None), ("module.", None), ("module.1.", "module.0."), ("1.module.", "normalize_layer.")):
        state = {f"{prefix}{name}": value for name, value in values.items()}
        if norm:
            state |= {f"{norm}means": torch.tensor([[[0.4914]]]), f"{norm}sds": torch.tensor([0.25])}
        torch.save(state, tmp_path / "x.pt")
        read = torch_files.read(tmp_path / "x.pt")
        assert (read.mean, read.std) == (((0.4914,), (0.25,)) if norm else (None, None))
        assert read.tensors.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(read.tensors[name], value.detach().float().numpy())


def test_architecture_names():
    assert layouts.parse("cifar_resnet110") == ("resnet", 110)
    assert layouts.parse("resnet50") == ("resnet50", 50)
    for wrong in ("resnet18", "cifar_resnet21", "cifar_resnet2", "cifar_resnet50x", ""):
        with pytest.raises(ValueError, match="cifar_resnetN"):
            layouts.parse(wrong)


def test_export_refuses_what_it_cannot_write(file, monkeypatch, capsys):
    ours = file.parent / "ours.safetensors"
    for target, message in (
        (file, "a target that is new"),
        (file.parent / "nowhere/x.safetensors", "in a folder that exists"),
        (file.parent / "x.onnx", "with suffix .pth"),
    ):
        assert run(monkeypatch, export, "idrc-export", ours, target) == 1
        assert message in capsys.readouterr().err
    assert run(monkeypatch, export, "idrc-export", ours, file.parent / "y.safetensors") == 0
    assert (file.parent / "y.safetensors").is_file()
