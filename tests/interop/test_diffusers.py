"""Diffusers' U-Nets and their folders: the same functions after import, doubtful folders refused."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from idrc_jax import models
from idrc_jax.commands import import_network
from idrc_jax.interop import diffusers, layouts

DDPM = {
    "sample_size": 32, "layers_per_block": 2, "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None, "norm_eps": 1e-6, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
}  # fmt: skip
SMALL = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
GUIDED = SMALL | {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (16, 32, 48), "downsample_type": "resnet", "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 16, "out_channels": 6,
}  # fmt: skip
PEERS = {
    "ddpm-cifar10-32": DDPM,
    "defaults": SMALL,
    "guided": GUIDED,
    "guided, norm in the middle": GUIDED | {"attn_norm_num_groups": 4, "freq_shift": 0.5},
    "no attention": SMALL | {
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False,
        "in_channels": 1, "out_channels": 1, "sample_size": (8, 16), "downsample_padding": 0, "flip_sin_to_cos": False,
    },
}  # fmt: skip


def peer(config, seed=0):
    """Diffusers' network with norms and attention that do something."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    network = theirs.UNet2DModel(**config).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    for name, value in network.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight", "to_out.0.weight")):
            torch.nn.init.normal_(value, 0, 1 / len(value) ** 0.5)
    torch.nn.init.normal_(network.conv_out.weight, 0, 0.05)
    return network


def predictions(network, x, t):
    import torch

    with torch.no_grad():
        made = network(torch.tensor(x).permute(0, 3, 1, 2), torch.as_tensor(t)).sample
    return made.permute(0, 2, 3, 1).numpy()


def run(monkeypatch, *arguments):
    """The command's exit status."""
    monkeypatch.setattr(sys, "argv", ["idrc-import", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        import_network.main()
    return ended.value.code


@pytest.mark.peers
@pytest.mark.parametrize("name", PEERS)
def test_imported_networks_are_the_same_functions(tmp_path, monkeypatch, capsys, name):
    config = PEERS[name]
    network = peer(config)
    network.save_pretrained(tmp_path / "net")
    theirs = pytest.importorskip("diffusers")
    theirs.DDPMScheduler().save_pretrained(tmp_path / "net")
    assert run(monkeypatch, tmp_path / "net", "--out", tmp_path) == 0
    parameters = sum(one.numel() for one in network.parameters())
    assert f"Imported unet: {parameters / 1e6:.1f} million parameters, images " in capsys.readouterr().out
    tensors, description = models.read_weights(tmp_path)
    assert sum(value.size for value in tensors.values()) == parameters
    graph, _, _ = models.abstract(description, dtype="float32")
    x = np.random.default_rng(1).normal(size=(2, *description["image_shape"])).astype(np.float32)
    call = jax.jit(lambda tensors, x, t: models.merge(graph, tensors)(x, t))
    with jax.default_matmul_precision("highest"):
        for t in ([0.0, 999.0], [144.15, 395.95], [500.0, 500.0]):
            t = np.asarray(t, np.float32)
            expected = predictions(network, x, t)
            assert expected.std() > 0.2
            np.testing.assert_allclose(call(tensors, x, t), expected, atol=1e-4, rtol=0)
        if name == "defaults":  # one time for the whole batch
            np.testing.assert_allclose(call(tensors, x, np.float32(500)), expected, atol=1e-4, rtol=0)


@pytest.mark.peers
def test_the_other_layouts_of_a_folder(tmp_path):
    """A pipeline's subfolders; PyTorch's format; the attention of the first releases; another schedule."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers")
    network = peer(GUIDED)
    schedule = theirs.DDIMScheduler(
        num_train_timesteps=500, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    theirs.DDIMPipeline(network, schedule).save_pretrained(tmp_path)
    tensors, description = diffusers.import_unet(tmp_path)
    assert description["image_shape"] == [8, 8, 3]
    assert description["diffusion"] == {
        "schedule": {"kind": "cosine", "steps": 500, "beta_start": 0.0001, "beta_end": 0.02}, "prediction": "v",
    }  # fmt: skip
    assert diffusers.import_unet(tmp_path, size=16)[1]["image_shape"] == [16, 16, 3]
    with pytest.raises(ValueError, match=r"multiples of 4 for .*, got \[9, 9\]: give --size"):
        diffusers.import_unet(tmp_path, size=9)
    network.save_pretrained(tmp_path / "unet", safe_serialization=False)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    same(diffusers.import_unet(tmp_path)[0], tensors)
    olds = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = network.state_dict()
    state = {re.sub("|".join(olds), lambda found: olds[found[0]], name): value for name, value in state.items()}
    assert sum("proj_attn" in name for name in state) == 2 * 4
    torch.save(state, tmp_path / "unet/diffusion_pytorch_model.bin")
    same(diffusers.import_unet(tmp_path)[0], tensors)


def same(made, expected):
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(made[name], value)


SCHEDULE = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small network in diffusers' layout, without diffusers."""
    place = tmp_path_factory.mktemp("whole")
    config = json.loads(json.dumps({"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **SMALL}))
    (place / "config.json").write_text(json.dumps(config))
    (place / "scheduler_config.json").write_text(json.dumps(SCHEDULE))
    settings, _ = diffusers._unet(config, 0, place)
    description = {"architecture": "unet", "image_shape": [8, 8, 3], "unet": settings, "dtype": "float32"}
    _, params, _ = models.abstract(description, dtype="float32")
    generator = np.random.default_rng(0)
    stored = {
        diffusers.their_name(name): layouts.to_torch(generator.normal(size=value.shape).astype(np.float32))
        for name, value in params.items()
    }
    save_file(stored, place / "diffusion_pytorch_model.safetensors")
    return place


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "net"))


def change(file, **values):
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))


def drop(file):
    return lambda folder: (folder / file).unlink()


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def put(name, make):
    """Change a tensor, or remove it where `make` gives None."""

    def changed(folder):
        file = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        value = make(tensors.pop(name, None))
        save_file(tensors | ({} if value is None else {name: np.ascontiguousarray(value)}), file)

    return changed


def config(**values):
    return change("config.json", **values)


def schedule(**values):
    return change("scheduler_config.json", **values)


QUERY, SHORTCUT = "mid_block.attentions.0.to_q.weight", "up_blocks.1.resnets.0.conv_shortcut.weight"
REFUSED = [
    (drop("config.json"), "Expected a readable"),
    (drop("scheduler_config.json"), "Expected scheduler_config.json or scheduler/scheduler_config.json in"),
    (drop("diffusion_pytorch_model.safetensors"), "Expected diffusion_pytorch_model.safetensors or"),
    (write("config.json", b"{"), "Expected a readable"),
    (write("config.json", b"\xff\xfe"), "Expected a readable"),
    (write("config.json", b"[]"), "Expected a JSON object in"),
    (write("diffusion_pytorch_model.safetensors", b"short"), "Expected a whole .safetensors file"),
    (put(QUERY, lambda value: None), f"missing: {QUERY}; unexpected: none"),
    (put("mid_block.more", lambda value: np.zeros(3, np.float32)), "missing: none; unexpected: mid_block.more"),
    (put(QUERY, lambda value: value[:3]), f"Expected {QUERY} of shape (32, 32) in"),
    (put(QUERY, lambda value: value * np.nan), f"got a non-finite value in {QUERY}"),
    (put(QUERY, lambda value: value.astype(np.int32)), f"Expected floats in {QUERY}"),
    (put(SHORTCUT, lambda value: value.repeat(3, -1)), f"Expected {SHORTCUT} of shape"),
    (config(_class_name="UNet2DConditionModel"), "Expected a UNet2DModel in"),
    (config(encoder_hid_dim=3), "got also encoder_hid_dim"),
    (config(down_block_types=["DownBlock2D", "SkipDownBlock2D"]), "as down_block_types in"),
    (config(down_block_types=["DownBlock2D"]), "Expected 2 of DownBlock2D"),
    (config(up_block_types=None), "as up_block_types in"),
    (config(down_block_types=["DownBlock2D", "DownBlock2D"]), "Expected attention at the same resolutions"),
    (config(down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"]), "one way to resample"),
    (config(upsample_type="resnet"), "one way to resample"),
    (config(center_input_sample=True), "Expected center_input_sample false in"),
    (config(time_embedding_type="fourier"), 'Expected time_embedding_type "positional" in'),
    (config(time_embedding_dim=96), "Expected time_embedding_dim null or 64 in"),
    (config(class_embed_type="timestep"), "Expected class_embed_type null in"),
    (config(num_class_embeds=10), "Expected num_class_embeds null in"),
    (config(mid_block_scale_factor=1.4), "Expected mid_block_scale_factor 1 in"),
    (config(mid_block_type=None), 'Expected mid_block_type "UNetMidBlock2D" in'),
    (config(attn_norm_num_groups=8), "Expected attn_norm_num_groups null or 4 in"),
    (config(resnet_time_scale_shift="ada_group"), 'Expected resnet_time_scale_shift "default" or "scale_shift" in'),
    (config(act_fn="gelu"), 'Expected act_fn "silu" or "swish" in'),
    (config(layers_per_block=[1, 2]), "Expected layers_per_block >= 1 in"),
    (config(layers_per_block=2), "missing: down_blocks.0.resnets.1"),
    (config(norm_num_groups=5), "multiples of 5 groups"),
    (config(norm_eps="small"), "Expected a number as norm_eps in"),
    (config(block_out_channels=[16, "32"]), "as block_out_channels in"),
    (config(block_out_channels=[16, 64]), "of shape"),
    (config(attention_head_dim="all"), "Expected attention_head_dim >= 1 or null in"),
    (config(attention_head_dim=12), "multiples of 12 per head"),
    (config(sample_size=None), "give --size"),
    (config(sample_size=[8, 9]), "Expected images with sides in multiples of 2 for"),
    (config(out_channels=4), "Expected 3 or 6 (with a learned variance) out_channels in"),
    (schedule(_class_name="FlowMatchEulerDiscreteScheduler"), 'Expected _class_name "DDPMScheduler" or'),
    (schedule(beta_schedule="sigmoid"), 'Expected beta_schedule "linear" or "scaled_linear" or'),
    (schedule(trained_betas=[0.1, 0.2]), "Expected trained_betas null in"),
    (schedule(rescale_betas_zero_snr=True), "Expected rescale_betas_zero_snr false in"),
    (schedule(prediction_type="flow"), 'Expected prediction_type "epsilon" or'),
    (schedule(num_train_timesteps=0), "Expected num_train_timesteps >= 2 in"),
    (schedule(beta_start=0.5, beta_end=0.1), "Expected 0 < beta_start <= beta_end < 1 in"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED)
def test_doubtful_folders_are_refused_in_one_line(folder, monkeypatch, capsys, damage, message):
    damage(folder)
    out = folder.parent / "out"
    assert run(monkeypatch, folder, "--out", out) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not out.exists()


def test_a_folder_says_all_by_itself(folder, monkeypatch, capsys):
    out = folder.parent / "out"
    assert run(monkeypatch, folder, "--out", out, "--arch", "resnet50", "--mean", "0.5") == 1
    assert "Expected no --arch, --mean for " in capsys.readouterr().err
    assert run(monkeypatch, folder, "--out", out) == 0
    said = capsys.readouterr().out
    assert "images 8x8x3, 1000 steps of a linear schedule, predicts epsilon" in said
    _, description = models.read_weights(out)
    assert description["diffusion"] == {
        "schedule": {"kind": "linear", "steps": 1000, "beta_start": 0.0001, "beta_end": 0.02}, "prediction": "epsilon",
    }  # fmt: skip
    assert description["unet"] == {
        "channels": 3, "channels_out": 3, "widths": [16, 32], "blocks": 1, "attention": [False, True],
        "middle_attention": True, "middle_norm": True, "head_channels": 8, "groups": 4, "epsilon": 1e-5,
        "scale_shift": False, "resample": "conv", "downsample_padding": 1, "flip_sin_to_cos": True,
        "frequency_shift": 0,
    }  # fmt: skip
