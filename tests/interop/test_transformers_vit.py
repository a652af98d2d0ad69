"""Vision Transformers from transformers' folders, beside the networks themselves in PyTorch."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_importing import images, nothing, put, rename, run

from idrc_jax import models
from idrc_jax.commands import import_network
from idrc_jax.interop import importing

MOMENTS = {"image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.25, 0.3]}
PREPROCESSING = MOMENTS | {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 2}
GIVEN = ["--mean", 0.5, 0.4, 0.6, "--std", 0.5, 0.25, 0.3]
SIZES = {
    "small": {
        "image_size": 24, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "num_labels": 5,
    },
    "more heads": {
        "image_size": 32, "patch_size": 4, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
        "intermediate_size": 40, "num_labels": 7,
    },
    "ViT-B/16": {"num_labels": 10},
}  # fmt: skip


def classify(folder, batch):
    classifier = models.load_classifier(folder)
    return np.asarray(jax.jit(classifier.apply_fn)(classifier.params, batch))


def peer(name):
    """A network of transformers whose every tensor matters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch_networks import randomise

    network = randomise(transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES[name])))
    for tensor in (network.vit.embeddings.cls_token, network.vit.embeddings.position_embeddings):
        torch.nn.init.normal_(tensor, 0, 0.5)
    return network


def peer_logits(network, batch):
    """Of images in [0, 1]."""
    import torch
    from torch_networks import Normalise

    with torch.no_grad():
        return network(Normalise(*MOMENTS.values())(torch.tensor(batch).permute(0, 3, 1, 2))).logits.numpy()


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "count", "binary"), [("small", 3, True), ("more heads", 4, False), ("ViT-B/16", 1, False)]
)
def test_logits_are_transformers(tmp_path, monkeypatch, capsys, name, count, binary):
    network = peer(name)
    network.save_pretrained(tmp_path / "vit")
    if binary:
        import torch

        tensors = load_file(tmp_path / "vit/model.safetensors")
        (tmp_path / "vit/model.safetensors").unlink()
        state = {key: torch.from_numpy(value) for key, value in tensors.items()}
        torch.save(state, tmp_path / "vit/pytorch_model.bin")
    size, classes = network.config.image_size, network.config.num_labels
    assert run(monkeypatch, import_network, "idrc-import", tmp_path / "vit", *GIVEN, "--out", tmp_path / "out") == 0
    said = f"Imported vit: {classes} classes, images {size}x{size}x3, normalised by mean [0.5, 0.4, 0.6]"
    assert said in capsys.readouterr().out
    batch = images(count, size)
    expected = peer_logits(network, batch)
    assert expected.std() > 0.3
    np.testing.assert_allclose(classify(tmp_path / "out", batch), expected, atol=1e-4, rtol=0)


@pytest.mark.peers
@pytest.mark.parametrize(("resample", "mode"), [(2, "bilinear"), (3, "bicubic")])
def test_images_of_other_sizes_are_resized_as_by_pytorch(tmp_path, monkeypatch, resample, mode):
    torch = pytest.importorskip("torch")
    network = peer("small")
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING | {"resample": resample}))
    for size in (10, 40):
        out = tmp_path / f"{size}"
        assert run(monkeypatch, import_network, "idrc-import", tmp_path, "--size", size, "--out", out) == 0
        batch = images(3, size)
        planes = torch.tensor(batch).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(planes, (24, 24), mode=mode, antialias=True)
        if mode == "bilinear" and size == 10:  # then the same without
            plain = torch.nn.functional.interpolate(planes, (24, 24), mode=mode, align_corners=False)
            np.testing.assert_allclose(resized, plain, atol=1e-6)
        expected = peer_logits(network, resized.permute(0, 2, 3, 1).numpy())
        np.testing.assert_allclose(classify(out, batch), expected, atol=1e-4, rtol=0)


CONFIG = {
    "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_act": "gelu", "hidden_size": 8,
    "image_size": 8, "intermediate_size": 12, "layer_norm_eps": 1e-12, "num_attention_heads": 2, "num_channels": 3,
    "num_hidden_layers": 1, "patch_size": 4, "qkv_bias": True,
}  # fmt: skip
SHAPES = {
    "vit.embeddings.cls_token": (1, 1, 8),
    "vit.embeddings.position_embeddings": (1, 5, 8),
    "vit.embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4),
    "vit.embeddings.patch_embeddings.projection.bias": (8,),
    "vit.encoder.layer.0.layernorm_before.weight": (8,),
    "vit.encoder.layer.0.layernorm_before.bias": (8,),
    "vit.encoder.layer.0.attention.attention.query.weight": (8, 8),
    "vit.encoder.layer.0.attention.attention.query.bias": (8,),
    "vit.encoder.layer.0.attention.attention.key.weight": (8, 8),
    "vit.encoder.layer.0.attention.attention.key.bias": (8,),
    "vit.encoder.layer.0.attention.attention.value.weight": (8, 8),
    "vit.encoder.layer.0.attention.attention.value.bias": (8,),
    "vit.encoder.layer.0.attention.output.dense.weight": (8, 8),
    "vit.encoder.layer.0.attention.output.dense.bias": (8,),
    "vit.encoder.layer.0.layernorm_after.weight": (8,),
    "vit.encoder.layer.0.layernorm_after.bias": (8,),
    "vit.encoder.layer.0.intermediate.dense.weight": (12, 8),
    "vit.encoder.layer.0.intermediate.dense.bias": (12,),
    "vit.encoder.layer.0.output.dense.weight": (8, 12),
    "vit.encoder.layer.0.output.dense.bias": (8,),
    "vit.layernorm.weight": (8,),
    "vit.layernorm.bias": (8,),
    "classifier.weight": (4, 8),
    "classifier.bias": (4,),
}


def write(folder, *, config=CONFIG, preprocessing=PREPROCESSING, change=nothing):
    """A folder as on the Hub, without transformers; the tensors."""
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    change(tensors)
    folder.mkdir()
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    for name, content in (("config", config), ("preprocessor_config", preprocessing)):
        if content is not None:
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tensors


def test_every_tensor_and_setting_arrives(tmp_path):
    stored = write(tmp_path / "vit", config=CONFIG | {"image_size": [8, 8]})
    tensors, described = importing.import_network(tmp_path / "vit", size=6, classes=4)
    assert (described["architecture"], described["classes"], described["image_shape"]) == ("vit", 4, [6, 6, 3])
    sizes = {"size": 8, "patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp": 12}
    assert described["vit"] == sizes | {"resize": "bilinear"}
    assert (described["mean"], described["std"]) == tuple(MOMENTS.values())
    assert described["normalisation"].endswith("from the file")
    assert described["imported"]["file"] == "model.safetensors"
    assert sorted(value.sum() for value in tensors.values()) == pytest.approx(
        sorted(value.sum() for value in stored.values()), rel=1e-5
    )
    kernel = stored["vit.encoder.layer.0.intermediate.dense.weight"].T
    np.testing.assert_array_equal(tensors["blocks.0.fc1.kernel"], kernel)
    _, described = importing.import_network(tmp_path / "vit")
    assert described["image_shape"] == [8, 8, 3]


QUERY = "vit.encoder.layer.0.attention.attention.query.weight"
REFUSED = [
    ({"change": rename(QUERY, "vit.queries")}, [], f"missing: {QUERY}; unexpected: vit.queries."),
    ({"change": lambda t: t.update({"vit.pooler.bias": t["classifier.bias"]})}, [], "unexpected: vit.pooler.bias"),
    ({"change": put(QUERY, lambda v: v[:4])}, [], "query.weight of shape (8, 8) in"),
    ({"change": put("vit.embeddings.position_embeddings", lambda v: v[:, 1:])}, [], "embeddings of shape (1, 5, 8) in"),
    ({"change": put(QUERY, lambda v: v * np.nan)}, [], f"non-finite value in {QUERY}"),
    ({"change": put(QUERY, lambda v: v.astype(np.int32))}, [], f"Expected floats in {QUERY}"),
    ({"change": lambda t: t.pop("classifier.bias")}, [], "Expected a tensor classifier.bias with 1 axes"),
    ({"config": None}, [], "Expected a readable"),
    ({"config": "{"}, [], "Expected a readable"),
    ({"config": "[1]"}, [], "Expected a JSON object in"),
    ({"config": CONFIG | {"architectures": ["DeiTForImageClassificationWithTeacher"]}}, [], "got architectures ['DeiT"),
    ({"config": {}}, [], "got architectures None"),
    ({"config": CONFIG | {"hidden_act": "gelu_new"}}, [], "Expected hidden_act = gelu in"),
    ({"config": CONFIG | {"qkv_bias": False}}, [], "Expected qkv_bias = True in"),
    ({"config": CONFIG | {"layer_norm_eps": 1e-6}}, [], "Expected layer_norm_eps = 1e-12 in"),
    ({"config": CONFIG | {"image_size": [8, 12]}}, [], "number as image_size in"),
    ({"config": CONFIG | {"num_hidden_layers": 0}}, [], "number as num_hidden_layers in"),
    ({"config": CONFIG | {"num_hidden_layers": 2}}, [], "missing: vit.encoder.layer.1.attention.attention.key.bias"),
    ({"config": CONFIG | {"num_attention_heads": 3}}, [], "the heads share equally, got 8 with 3 heads"),
    ({"config": {k: v for k, v in CONFIG.items() if k != "num_channels"}}, [], "number as num_channels in"),
    ({"preprocessing": None}, [], "Expected --mean and --std of the images' normalisation"),
    ({"preprocessing": {}}, [], "Expected --mean and --std of the images' normalisation"),
    ({}, ["--mean", 0.5, "--std", 0.5], "Expected no --mean and --std"),
    ({"preprocessing": PREPROCESSING | {"image_mean": 0.5}}, [], "Expected image_mean of each channel"),
    ({"preprocessing": PREPROCESSING | {"image_std": [1, 0, 1]}}, [], "std > 0"),
    ({"preprocessing": {"image_mean": [0.5] * 3}}, [], "Expected a std for each"),
    ({"preprocessing": PREPROCESSING | {"do_normalize": False}}, [], "Expected do_normalize = True"),
    ({"preprocessing": PREPROCESSING | {"rescale_factor": 1 / 127.5}}, [], "Expected rescale_factor = 0.0039"),
    ({"preprocessing": PREPROCESSING | {"resample": 0}}, [], "Expected resample 2 (bilinear) or 3 (bicubic)"),
    ({}, ["--arch", "resnet50"], "Expected no --arch"),
    ({}, ["--classes", 10], "Expected a head of 10 classes"),
]


@pytest.mark.parametrize(("damage", "arguments", "message"), REFUSED)
def test_doubtful_folders_are_refused_in_one_line(tmp_path, monkeypatch, capsys, damage, arguments, message):
    write(tmp_path / "vit", **damage)
    assert run(monkeypatch, import_network, "idrc-import", tmp_path / "vit", "--out", tmp_path / "out", *arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / "out").exists()


def test_truncated_and_missing_weights_are_refused(tmp_path):
    write(tmp_path / "vit")
    file = tmp_path / "vit/model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"whole \.safetensors file"):
        importing.import_network(tmp_path / "vit")
    file.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors or pytorch_model\.bin in .*, got neither"):
        importing.import_network(tmp_path / "vit")
