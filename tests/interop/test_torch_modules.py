"""PyTorch modules as JAX classifiers, beside PyTorch."""

import logging
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

from idrc_jax import sampling
from idrc_jax.certificates import schemes
from idrc_jax.interop import pixels, torch_modules
from idrc_jax.kernels import network_cpu
from idrc_jax.sampling import devices, random_keys

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

from torch_networks import CifarResNet, Normalise, logits, randomise  # noqa: E402


def images(count, height, width, channels=3, seed=0):
    return np.random.default_rng(seed).normal(0.5, 0.5, size=(count, height, width, channels)).astype(np.float32)


def from_torch(module, height=32, width=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)):
    return torch_modules.from_torch(module, image_shape=(height, width, 3), mean=mean, std=std)


class Logits(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x).logits


FAMILIES = {
    "ResNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    "ViT": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
        "patch_size": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers_agree_under_jit(family):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(num_labels=5, **FAMILIES[family])
    module = randomise(getattr(transformers, f"{family}ForImageClassification")(config))
    classifier = from_torch(module)
    assert (classifier.classes, classifier.image_shape, classifier.dtype) == (5, (32, 32, 3), "float32")
    assert 0 <= classifier.description["torch_difference"] < 1e-4
    whole = nn.Sequential(Normalise([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), Logits(module))
    for count in (1, 7):
        batch = images(count, 32, 32, seed=count)
        expected = logits(whole, batch)
        assert expected.std() > 0.1
        made = jax.jit(classifier.apply_fn)(classifier.params, batch)
        np.testing.assert_allclose(made, expected, atol=1e-4, rtol=0)


class Together(nn.Module):
    """The results of many small networks side by side, as if they were logits."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return torch.cat([part(x).flatten(1).float() for part in self.parts], 1)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def attention(x):
    tokens = x.flatten(2).transpose(1, 2)
    return functional.scaled_dot_product_attention(tokens, tokens.flip(1), tokens * 2)


def attends(mask=None, heads=3, **options):
    """[N, 3, 11, 9] as heads, tokens and numbers."""
    return lambda x: functional.scaled_dot_product_attention(x, x[:, :heads].flip(2), 2 * x[:, :heads], mask, **options)


MASK = torch.arange(11 * 11).reshape(11, 11) % 3 > 0
MASK[4] = False  # a token that may look at none
ATTENTION = [
    attends(), attends(scale=0.7), attends(is_causal=True), attends(MASK), attends(MASK | ~MASK), attends(-3.0 * MASK),
    attends(heads=1, enable_gqa=True),
]  # fmt: skip


POOLS = [
    nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d((2, 3), (3, 2), (1, 0), ceil_mode=True),
    nn.MaxPool2d(2, 1, 1, dilation=2), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.AvgPool2d((3, 2), 3, (1, 0), divisor_override=5),
    nn.AvgPool2d(2, 2, ceil_mode=True), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 4)),
    nn.AdaptiveAvgPool2d((13, 2)), nn.Upsample(scale_factor=2), nn.Upsample((17, 5)),
    nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample((7, 4), mode="bilinear"),
]  # fmt: skip
LAYERS = [
    nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 2), bias=False), nn.Conv2d(3, 6, 3, 2, 1, groups=3),
    nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 5, padding="same"),
    nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False),
    nn.GroupNorm(3, 3), nn.GroupNorm(1, 3, affine=False), nn.LayerNorm([3, 11, 9]), nn.LayerNorm(9, bias=False),
    nn.LayerNorm(9, elementwise_affine=False), nn.Linear(9, 5), nn.Linear(9, 4, bias=False), nn.ZeroPad2d((1, 0, 2, 3)),
    nn.ConstantPad2d((-1, 2, 0, -2), 0.7), nn.Dropout(0.5), nn.Softmax(1), nn.LogSoftmax(-1), nn.ChannelShuffle(3),
    nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 3, 2, 1)),
    nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(1)), nn.PixelUnshuffle(1), nn.Identity(),
]  # fmt: skip
ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SELU(), nn.CELU(0.5), nn.GELU(), nn.GELU("tanh"),
    nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-0.3, 0.4), nn.Sigmoid(), nn.Tanh(),
    nn.Softplus(),
    nn.Softsign(), nn.Threshold(0.1, 0.2), nn.LogSigmoid(), nn.Tanhshrink(),
]  # fmt: skip
FUNCTIONS = [
    lambda x: x.mean((2, 3)), lambda x: x.mean((1, 2, 3), keepdim=True),
    lambda x: x.amax(1), lambda x: x.amin((1, 2), keepdim=True),
    lambda x: x.sum(-1), lambda x: x.std((2, 3)), lambda x: x.var(1, correction=0), lambda x: x.norm(dim=1),
    lambda x: functional.normalize(x, dim=1), lambda x: (x > 0.3).any(1), lambda x: x.abs().sqrt() + x.square().exp(),
    lambda x: (x.abs() + 1).log() * x.sin() - x.cos() / 3, lambda x: x.abs().add(0.1).rsqrt() + x.abs().add(1).log1p(),
    lambda x: torch.where(x > 0, x, -2 * x), lambda x: x.clamp(min=0.1), lambda x: x.clamp(-0.2, 0.3),
    lambda x: torch.maximum(x, x.flip(2)), lambda x: torch.minimum(x, 1 - x), lambda x: x**2 + x.abs() ** 1.5,
    lambda x: x.roll(2, 3), lambda x: torch.cat(x.chunk(2, 2)[::-1], 2), lambda x: torch.cat(x.split([3, 6], 3), 3),
    lambda x: x[:, [2, 0], 1:9:2], lambda x: x[..., 0], lambda x: x[:, :, torch.tensor([[0, 3], [1, 1]])],
    lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1), lambda x: x.repeat(1, 2, 1, 1), lambda x: x.permute(0, 3, 1, 2),
    lambda x: torch.stack([x, x + 1], 2).squeeze(0), lambda x: x.to(torch.float16).float(), lambda x: x.round() % 3,
    lambda x: torch.einsum("nchw,ndhw->ncd", x, x), lambda x: x @ x.transpose(2, 3), attention,
    lambda x: torch.baddbmm(x[:, 0, :3, :3], x[:, 1, :3], x[:, 2, :, :3][:, :9]),
    lambda x: torch.erf(x).floor().neg(),
    lambda x: x.sub(0.5, alpha=2).div(3, rounding_mode="floor"),
    lambda x: torch.sigmoid(x).ceil(),
    lambda x: x + torch.arange(9) / 10 + torch.ones_like(x) - torch.zeros(3, 1, 1) + torch.full((9,), 0.5),
    lambda x: functional.embedding((x[:, 0] > 0).long(), torch.tensor([[0.1, 0.2], [0.3, 0.4]])),
    lambda x: (x > 0) & (x < 1) | ~(x != x), lambda x: torch.logical_or(x > 1, torch.logical_not(x <= 0.5)),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(
    "how",
    [
        {"scale_factor": 1.3}, {"scale_factor": 1.55}, {"scale_factor": 0.7}, {"scale_factor": 2.0},
        {"scale_factor": 2.03},
        {"scale_factor": (1.3, 0.55)}, {"scale_factor": (1.7, 1.03)}, {"size": (19, 5)},
        {"scale_factor": 1.3, "recompute_scale_factor": True},
    ],
    ids=str,
)  # fmt: skip
def test_images_change_size_as_in_pytorch(mode, how):
    """Also where a side times its factor is no whole number, or the side again."""
    module = Function(lambda x: functional.interpolate(x, mode=mode, **how).flatten(1)).eval()
    classifier = from_torch(module, 11, 10, 0.0, 1.0)
    batch = images(3, 11, 10)
    np.testing.assert_allclose(classifier(batch), logits(module, batch), atol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [POOLS, LAYERS, ACTIVATIONS, *([Function(one) for one in several] for several in (FUNCTIONS, ATTENTION))],
    ids=["pools", "layers", "activations", "functions", "attention"],
)
def test_operations_agree(parts):
    """On images of 11 x 9, which no window divides."""
    module = randomise(Together(*parts))
    classifier = from_torch(module, 11, 9, 0.0, 1.0)
    batch = images(5, 11, 9)
    made = np.asarray(jax.jit(classifier.apply_fn)(classifier.params, batch))
    np.testing.assert_allclose(made, logits(module, batch), atol=1e-4, rtol=1e-4)


def test_a_network_of_the_field_certifies_as_any_classifier():
    """Votes do not depend on the devices, and are those of PyTorch on the same noisy images."""
    module = randomise(CifarResNet(8, option_a=True))
    classifier = from_torch(module, 8, 8)
    pictures = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    scheme = schemes.Gaussian(sigma=0.5)
    options = {"indices": np.array([3, 9]), "n": 200, "key": random_keys.root(0)}
    votes = sampling.count_votes(classifier, scheme, pictures, chunk=16, mesh=devices.mesh(1), **options)
    again = sampling.count_votes(classifier, scheme, pictures, chunk=30, mesh=devices.mesh(3), **options)
    assert votes.sum(1).tolist() == [200, 200]
    assert np.abs(votes - again).sum() <= 2  # ties of rounding
    assert np.max(votes, axis=1).max() < 200
    one_by_one = jax.vmap(lambda image: classifier(image[None])[0])(pictures)
    np.testing.assert_allclose(one_by_one, classifier(pictures), atol=1e-4)


def small(activation=nn.ReLU, seed=0):
    layers = (nn.Conv2d(3, 4, 3, 2), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return randomise(nn.Sequential(*layers), seed)


def test_the_hash_tells_networks_apart():
    base = from_torch(small()).sha256
    assert from_torch(small()).sha256 == base
    assert from_torch(small(seed=1)).sha256 != base
    assert from_torch(small(nn.GELU)).sha256 != base
    assert from_torch(small(), std=(0.2, 0.25, 0.31)).sha256 != base
    code = "import sys; sys.path[:0] = ['tests', 'tests/interop']; import test_torch_modules as t; "
    code += "print(t.from_torch(t.small()).sha256)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == base


def half_in_training():
    module = small()
    module[1].train()
    return module


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen.add_(1)
        return x.flatten(1)


REFUSED = [
    (half_in_training, "got 1 in training mode"),
    (lambda: small().double(), "got 0.weight of torch.float64 on cpu"),
    (lambda: small().to("meta"), "on meta"),
    (lambda: Function(lambda x: x.cumsum(1).flatten(1)).eval(), "got also aten.cumsum.default"),
    (
        lambda: Function(lambda x: (x.cumsum(1) + torch.rand_like(x)).sort(1)[0].flatten(1)).eval(),
        r"aten\.rand.*, aten\.sort",
    ),
    (lambda: Function(lambda x: x).eval(), r"logits \[9, K\], got \(9, 3, 32, 32\)"),
    (lambda: Function(lambda x: x.mean((1, 2, 3))).eval(), r"logits \[9, K\], got \(9,\)"),
    (lambda: Function(lambda x: (x.flatten(1), 1)).eval(), r"logits \[9, K\], got tuple"),
    (lambda: Function(lambda x: x.mean((2, 3))[:, :1]).eval(), r"at least 2 classes in a classifier, got 1.*\[0, z\]"),
    (lambda: Function(lambda x: x.flatten(1) + len(x) % 2).eval(), "any batch size|differ|agree|also"),
    (lambda: Function(lambda x: x.flatten(1) if x.sum() > 0 else -x.flatten(1)).eval(), "any batch size"),
    (lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 3), nn.Flatten()).eval(), "transposed"),
    (lambda: Function(lambda x: x.flatten(1) - x.mean()).eval(), "equal logits of an image in two batches"),
    (lambda: Counting().eval(), "changes none of its tensors"),
    (lambda: Function(lambda x: x.sqrt().mean((2, 3))).eval(), "finite logits of images with noise, got others: clamp"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        from_torch(make())
    assert "\n" not in str(raised.value)


class Counted(nn.Module):
    """A network that counts the images of its batch in a way that the tracer cannot follow."""

    def __init__(self, count):
        super().__init__()
        self.network, self.count = small(), count

    def forward(self, x):
        return self.network(x).reshape(self.count(x), 3)


COUNTS = [lambda x: len(x), lambda x: int(x.shape[0]), lambda x: [one.sum() for one in x] and -1]


@pytest.mark.parametrize("count", COUNTS)
def test_the_line_that_fixes_the_batch_is_named(count):
    line = count.__code__.co_firstlineno
    with pytest.raises(ValueError, match=rf"fixes it at .*test_torch_modules\.py, line {line}: .*: write x.shape\[0\]"):
        from_torch(Counted(count).eval())


def test_the_line_that_the_tracer_stumbles_over_is_named():
    with pytest.raises(ValueError, match=r"any batch size, got: .* At .*test_torch_modules\.py, line \d+: .*\.numpy"):
        from_torch(Function(lambda x: torch.tensor(x.flatten(1).numpy())).eval())


LOST = {
    "relu": nn.ReLU(), "elu": nn.ELU(), "relu6": nn.ReLU6(), "hardswish": nn.Hardswish(), "gelu": nn.GELU(),
    "clamp": Function(lambda x: x.clamp(min=0)), "maximum": Function(lambda x: torch.maximum(x, x.flip(2))),
    "minimum": Function(lambda x: torch.minimum(x, x.flip(3))), "amax": Function(lambda x: x.amax((2, 3), True)),
    "one_pool": nn.MaxPool2d(64), "pool": nn.MaxPool2d(3), "overlapping_pool": nn.MaxPool2d(3, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_is_no_number_reaches_the_logits(name):
    """As in PyTorch, in images so large that XLA hands sums over pixels to a library."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.head = LOST[name], nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.part(x).mean((2, 3)))

    module = Network().eval()
    classifier = torch_modules.from_torch(module, image_shape=(64, 64, 16), mean=0.0, std=1.0)
    batch = np.random.default_rng(0).normal(size=(4, 64, 64, 16)).astype(np.float32)
    batch[1] = np.nan
    batch[2, 30, 30] = np.nan
    expected = np.isnan(logits(module, batch))
    assert expected.any(axis=1).tolist() == [False, True, True, False]
    for one in classifier.implementations:
        np.testing.assert_array_equal(np.isnan(jax.jit(one.apply_fn)(one.params, batch)), expected, one.kernel)


def test_training_the_module_further_changes_nothing():
    module = small()
    classifier = from_torch(module)
    batch = images(2, 32, 32)
    before = np.asarray(classifier(batch))
    with torch.no_grad():
        for value in module.parameters():
            value.add_(1)
    np.testing.assert_array_equal(classifier(batch), before)


def test_wrong_moments_are_refused():
    with pytest.raises(ValueError, match="each of 3 channels"):
        from_torch(small(), mean=(0.5, 0.5))
    for moments in ({"mean": (125.3, 123.0, 113.9)}, {"std": (63.0, 62.1, 66.7)}, {"std": 0.0}, {"mean": float("nan")}):
        with pytest.raises(ValueError, match=r"Expected a mean within \[0, 1\] and a std within \(0, 1\]"):
            from_torch(small(), **moments)


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ("model.pth", {}, r"Expected a torch\.nn\.Module with its weights in it, got 'model\.pth': idrc-import"),
        ({"weight": 3}, {}, "got dict: idrc-import"),
        (
            small(),
            {"image_shape": (3, 32, 32), "mean": (0.5, 0.5, 0.5)},
            r"H, W, C\), got .* image_shape = \(32, 32, 3\)",
        ),
        (
            small(),
            {"image_shape": (3, 32, 32)},
            r"images \[9, 32, 3, 32\], \[N, C, H, W\] by image_shape = \(H, W, C\) =",
        ),
    ],
)
def test_what_is_no_module_or_takes_other_images_is_told_how_to(given, more, message):
    with pytest.raises(ValueError, match=message):
        torch_modules.from_torch(given, **{"image_shape": (32, 32, 3), "mean": 0.0, "std": 1.0} | more)


def probabilities(classes=1000):
    return randomise(nn.Sequential(*small()[:-1], nn.Linear(4, classes), Function(lambda x: x / 10), nn.Softmax(1)))


NETWORKS = {
    "logits": small, "probabilities": probabilities,
    "faint": lambda: nn.Sequential(small(), Function(lambda x: x * 1e-5)).eval(),
}  # fmt: skip


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_translation_that_disagrees_is_refused(monkeypatch, make):
    """Also where logits are so small that a wrong one is nearly the right one."""
    assert from_torch(make()).description["torch_difference"] < 1e-5
    relu = pixels.in_stored_order(lambda x: jax.nn.relu(x) * 1.01, pixels.elementwise)
    monkeypatch.setattr(torch_modules, "OPERATIONS", torch_modules.OPERATIONS | {"relu.default": relu})
    with pytest.raises(ValueError, match="equal logits of JAX and PyTorch"):
        from_torch(make())


def test_constants_in_bfloat16_are_read():
    scale = torch.tensor([1.5, 2.5, 0.5], dtype=torch.bfloat16)
    module = nn.Sequential(small(), Function(lambda x: x * scale)).eval()
    classifier, batch = from_torch(module, mean=0.0, std=1.0), images(4, 32, 32)
    np.testing.assert_allclose(classifier(batch), logits(module, batch), atol=1e-5)


def test_what_all_logits_share_may_round():
    assert from_torch(nn.Sequential(small(), Function(lambda x: x + 1e4)).eval()).classes == 3


def test_an_operation_that_disagrees_beyond_the_pixels_range_is_refused():
    """A negative number has no meaning as an unsigned one."""

    def as_bytes(x):
        return (255 * x).to(torch.uint8).float().flatten(1)

    with pytest.raises(ValueError, match="equal logits of JAX and PyTorch"):
        from_torch(Function(as_bytes).eval(), mean=0.0, std=1.0)
    assert from_torch(Function(lambda x: as_bytes(x.clamp(0, 1))).eval(), mean=0.0, std=1.0).classes == 3072


@pytest.mark.parametrize("small_integer", [torch.uint8, torch.int8, torch.int16])
def test_a_cast_to_integers_is_not_left_out_before_a_mean(small_integer):
    module = Function(lambda x: (100 * x.clamp(0, 1)).to(small_integer).float().mean((2, 3))).eval()
    classifier = from_torch(module, mean=0.0, std=1.0)
    for count in (1, 9, 33):
        batch = images(count, 32, 32)
        np.testing.assert_allclose(classifier(batch), logits(module, batch), atol=1e-3)


def test_without_pytorch_the_way_out_is_named(monkeypatch):
    module = small()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[torch\]' in the checkout"):
        from_torch(module)


@pytest.mark.parametrize("depend", [lambda y: y - 5 * y[:1], lambda y: y - 5 * y[-1:], lambda y: y - y.mean(0)])
def test_logits_that_depend_on_other_images_are_refused(depend):
    class Dependent(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small()

        def forward(self, x):
            return depend(self.network(x))

    with pytest.raises(ValueError, match="an image in two batches"):
        from_torch(Dependent().eval())


class Faint(nn.Module):
    """Logits that lie close together: a thousand probabilities of a network that adds after a permutation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.rows = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 1000)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = torch.relu(x + self.rows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return functional.softmax(self.head(x.amax((2, 3))) * 0.02, 1)


needs_kernel = pytest.mark.skipif(not network_cpu.available(), reason="needs a C++ compiler")


@needs_kernel
def test_logits_that_lie_close_together_agree_by_the_kernels():
    torch.manual_seed(0)
    module = Faint().eval()
    classifier = from_torch(module, 8, 8, 0.0, 1.0)
    assert classifier.kernel == "network_cpu"
    batch = images(16, 8, 8)
    expected = logits(module, batch)
    gap = np.asarray(classifier(batch)) - expected
    assert np.abs(gap).max() <= 1e-5 * np.ptp(expected, axis=1).min()


def wrong_by(factor):
    """A fault of the fused graph that leaves small logits within 1e-4."""
    fuse = torch_modules.fusing.fuse

    def wrong(program, tensors, image_shape):
        fused, packed = fuse(program, tensors, image_shape)
        return fused, {name: value * factor if name.endswith("weights") else value for name, value in packed.items()}

    return wrong


def broken(*_):
    raise IndexError("No such axis.\nMore of it.")


@needs_kernel
@pytest.mark.parametrize(
    ("fuse", "why"), [(broken, "No such axis."), (wrong_by(1.01), "Expected the logits of plain JAX, got a difference")]
)
def test_kernels_that_fail_or_disagree_are_left_out_with_a_warning(monkeypatch, caplog, fuse, why):
    module = nn.Sequential(small(), Function(lambda x: x * 1e-5)).eval()
    assert from_torch(module).kernel == "network_cpu"
    monkeypatch.setattr(torch_modules.fusing, "fuse", fuse)
    with caplog.at_level(logging.WARNING, "idrc_jax"):
        classifier = from_torch(module)
    assert classifier.kernel != "network_cpu"
    (message,) = [one.getMessage() for one in caplog.records if one.name == "idrc_jax"]
    assert message.startswith(f"Left out network_cpu: {why}")
    assert "\n" not in message
    whole, batch = nn.Sequential(Normalise([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), module), images(4, 32, 32)
    np.testing.assert_allclose(classifier(batch), logits(whole, batch), atol=1e-9)


class Residuals(nn.Module):
    """Attention after many residual layers, with a mask that is made of features, or of the batch's size."""

    def __init__(self, mask_of):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(9, 9) for _ in range(40)])
        self.mask_of = mask_of

    def forward(self, x):
        for layer in self.layers:
            x = x + 0.1 * layer(x)
        made = functional.scaled_dot_product_attention(x, x, x, self.mask_of(x))
        return made.mean((2, 3))


@pytest.mark.parametrize(
    "mask_of",
    [
        lambda x: x[..., :1] < 1e9,
        lambda x: (torch.arange(x.shape[0]) < 50)[:, None, None, None].expand(-1, 3, x.shape[2], x.shape[2]),
    ],
    ids=["features", "batch"],
)
def test_a_mask_that_images_have_a_part_in_is_kept(mask_of):
    """Also where a thousand values lead to it, by 2 ** 40 ways; and where the first images are allowed everything."""
    module = randomise(Residuals(mask_of))
    classifier = from_torch(module, 11, 9, 0.0, 1.0)
    batch = images(60, 11, 9)
    expected = logits(module, batch)
    made = np.asarray(jax.jit(classifier.apply_fn)(classifier.params, batch))
    np.testing.assert_allclose(made, expected, atol=1e-4, equal_nan=True)
    assert not attends_by_kernel(classifier)


def attends_by_kernel(classifier):
    images = jax.ShapeDtypeStruct((2, *classifier.image_shape), np.float32)
    return "idrc_attention" in jax.jit(classifier.apply_fn).lower(classifier.params, images).as_text()


@needs_kernel
@pytest.mark.parametrize(
    ("mask_of", "by_kernel"),
    [
        (lambda x: None, True),
        (lambda x: (torch.arange(x.shape[2]) >= 0)[None, None, :, None].expand(x.shape[0], -1, -1, x.shape[2]), True),
        (lambda x: (torch.arange(x.shape[2]) > 0)[None, None, None].expand(x.shape[0], -1, x.shape[2], -1), False),
    ],
    ids=["none", "copies of what allows all", "copies of what does not"],
)
def test_attention_to_all_tokens_is_the_kernels(mask_of, by_kernel):
    """Also under the mask that transformers gives to a ViT."""
    module = randomise(Residuals(mask_of))
    classifier = from_torch(module, 11, 9, 0.0, 1.0)
    assert attends_by_kernel(classifier) == by_kernel
    batch = images(5, 11, 9)
    np.testing.assert_allclose(classifier(batch), logits(module, batch), atol=1e-4)


def test_dropout_in_inference_is_refused_by_its_name():
    module = Function(lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.3).mean((2, 3))).eval()
    with pytest.raises(ValueError, match=r"dropout"):
        from_torch(module, 11, 9, 0.0, 1.0)


def test_a_translation_prints_nothing(capfd):
    from_torch(small())
    assert capfd.readouterr() == ("", "")
