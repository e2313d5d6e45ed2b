"""The networks: their published sizes, their heads, what is random in them and when, and the refused names."""

import copy
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtkernels.train.config import SettingError
from mtkernels.train.models import MODELS, make_model
from mtkernels.train.models.convnet13 import ConvNet13
from mtkernels.train.models.resnext import Bottleneck
from mtkernels.train.models.shake_shake import ShakeBlock, ShiftedDownsample, shake
from mtkernels.train.models.weight_norm import WeightNormConv2d, WeightNormLinear
from mtkernels.train.models.wide_resnet import PreActivationBlock

SMALL = {"convnet": 8, "convnet13": 12, "cifar_shakeshake26": 4, "wrn-28-1": 8}  # name -> height and width


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# (name, classes, heads, parameters, parameter tensors, batch norms)
SIZES = [
    ("convnet13", 10, 1, 3_121_812, 30, 0),
    ("convnet13", 10, 2, 3_123_112, 33, 0),
    ("cifar_shakeshake26", 10, 2, 26_197_316, 160, 51),
    ("resnext152", 1000, 2, 62_000_400, 469, 155),
    ("wrn-28-2", 10, 1, 1_467_610, 80, 25),
    ("wrn-28-8", 100, 1, 23_401_012, 80, 25),
]


@pytest.mark.parametrize(("arch", "classes", "heads", "parameters", "tensors", "norms"), SIZES)
def test_published_sizes(arch, classes, heads, parameters, tensors, norms):
    with torch.device("meta"):
        model = make_model(arch, classes, channels=3, heads=heads)
        logits = model(torch.empty(2, 3, 32, 32))
    assert [one.shape for one in (logits if heads == 2 else [logits])] == heads * [(2, classes)]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(list(model.parameters())) == tensors
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == norms


@pytest.mark.parametrize("arch", SMALL)
def test_any_number_of_channels(arch):
    images = torch.rand(2, 4, SMALL[arch], SMALL[arch])
    assert make_model(arch, 7, channels=4, width=4)(images).shape == (2, 7)


@pytest.mark.parametrize("arch", SMALL)
def test_gradients_reach_every_parameter_and_the_heads_differ(arch):
    model = make_model(arch, 3, channels=3, heads=2, width=4)
    class_logits, consistency_logits = model(torch.rand(4, 3, SMALL[arch], SMALL[arch]))
    assert not torch.equal(class_logits, consistency_logits)
    (class_logits.square().sum() + consistency_logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("arch", SMALL)
def test_random_in_training_alone(arch):
    model = make_model(arch, 3, channels=3, width=4, dropout=0.5, noise=0.1)
    images = torch.rand(4, 3, SMALL[arch], SMALL[arch])
    assert not torch.equal(model(images), model(images))
    model.eval()
    state = torch.get_rng_state()
    assert torch.equal(model(images), model(images))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("arch", SMALL)
def test_copies_and_saved_states_are_whole(arch):
    model = make_model(arch, 3, channels=3, width=4, heads=2)
    images = torch.rand(4, 3, SMALL[arch], SMALL[arch])
    model(images)  # moves the running statistics
    model.eval()
    other = make_model(arch, 3, channels=3, width=4, heads=2).eval()
    assert not torch.equal(model(images)[0], other(images)[0])
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model)):
        for mine, theirs in zip(model(images), twin(images), strict=True):
            assert torch.equal(mine, theirs)


def test_the_convnet_as_the_loop_makes_it():
    model = MODELS["convnet"](10, width=4, dropout=0.5)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert model.classifier.weight.shape == (10, 8)


@pytest.mark.parametrize("arch", ["cifar_shakeshake26", "wrn-28-2"])
def test_first_kernels(arch):
    weights = [p for p in make_model(arch, 10, channels=3).parameters() if p.ndim == 4 and p.numel() > 10_000]
    for weight in weights:
        filters, _, height, width = weight.shape
        expected = (2 / (height * width * filters)) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.04)


# shake-shake


def test_shake_draws_a_gate_for_every_row_and_another_for_the_gradient():
    rows = 4096
    one = torch.ones(rows, 2, 3, 3, requires_grad=True)
    two = torch.zeros(rows, 2, 3, 3, requires_grad=True)
    mixed = shake(one, two, training=True)
    mixed.sum().backward(retain_graph=True)
    first = one.grad.clone()
    torch.testing.assert_close(one.grad + two.grad, torch.ones_like(first))
    mixed.sum().backward()
    gates = []
    for values in (mixed.detach(), first, one.grad - first):
        gates.append(values[:, 0, 0, 0])
        assert torch.allclose(values, gates[-1].view(-1, 1, 1, 1), atol=1e-6)  # one gate for the whole row
    gates = torch.stack(gates)
    # Uniform in 0..1: mean 1/2, variance 1/12; five standard errors.
    assert (gates.mean(1) - 1 / 2).abs().max() < 5 * (1 / 12 / rows) ** 0.5
    assert (gates.var(1) - 1 / 12).abs().max() < 5 * (1 / 180 / rows) ** 0.5
    assert 0 <= gates.min() < 0.01 and 0.99 < gates.max() <= 1
    assert (torch.corrcoef(gates) - torch.eye(3)).abs().max() < 5 / rows**0.5


def test_shake_in_evaluation_is_the_mean_with_random_gradients():
    one, two = torch.rand(64, 2, 3, 3, requires_grad=True), torch.rand(64, 2, 3, 3)
    mixed = shake(one, two, training=False)
    torch.testing.assert_close(mixed, (one + two) / 2)
    mixed.sum().backward()
    assert one.grad.flatten(1).std(1).max() == 0 and one.grad[:, 0, 0, 0].std() > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_shake_keeps_the_dtype(dtype):
    one = torch.rand(4, 2, 3, 3, dtype=dtype, requires_grad=True)
    mixed = shake(one, torch.rand_like(one), training=True)
    mixed.sum().backward()
    assert mixed.dtype == one.grad.dtype == dtype


@pytest.mark.parametrize(("channels", "stride"), [(6, 1), (4, 1), (4, 2)])
def test_shake_block(channels, stride):
    block = ShakeBlock(channels, 6, stride).eval()
    images = torch.randn(2, channels, 8, 8)
    kept = images.clone()
    one, two = (branch(images.relu()) for branch in (block.branch1, block.branch2))
    torch.testing.assert_close(block(images), block.shortcut(images) + (one + two) / 2)
    assert torch.equal(images, kept)


def test_shifted_downsample_takes_even_pixels_and_their_diagonal_neighbours():
    layer = ShiftedDownsample(2, 6).double().eval()
    images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    weight, bias = layer.convolution.weight, layer.convolution.bias
    even = F.conv2d(images[:, :, 0::2, 0::2].relu(), weight[:3], bias[:3])
    odd = F.conv2d(images[:, :, 1::2, 1::2].relu(), weight[3:], bias[3:])
    torch.testing.assert_close(layer(images), layer.norm(torch.cat((even, odd), 1)))


# the other residual blocks


def first_norm(images):
    """What a new batch norm does in evaluation."""
    return images / (1 + 1e-5) ** 0.5


@pytest.mark.parametrize(("channels", "stride"), [(128, 1), (64, 1), (64, 2)])
def test_bottleneck(channels, stride):
    block = Bottleneck(channels, 64, stride).eval()
    images = torch.randn(2, channels, 8, 8)
    kept = images.clone()
    first, second, third = (block.branch[index].weight for index in (0, 3, 6))
    inner = first_norm(F.conv2d(images, first)).relu()
    inner = first_norm(F.conv2d(inner, second, stride=stride, padding=1, groups=32)).relu()
    outputs = first_norm(F.conv2d(inner, third))
    shortcut = images
    if channels != 128:
        shortcut = first_norm(F.conv2d(images, block.shortcut[0].weight, stride=stride))
    torch.testing.assert_close(block(images), (shortcut + outputs).relu())
    assert torch.equal(images, kept)


@pytest.mark.parametrize(("channels", "stride"), [(6, 1), (4, 1), (4, 2), (6, 2)])
def test_pre_activation_block(channels, stride):
    block = PreActivationBlock(channels, 6, stride).eval()
    images = torch.randn(2, channels, 8, 8)
    active = first_norm(images).relu()
    same = channels == 6 and stride == 1
    expected = (images if same else block.shortcut(active)) + block.branch(active)
    torch.testing.assert_close(block(images), expected)


# weight norm and mean-only batch norm


def weight_norm_layers():
    """Each kind with what it maps, its weight's linear map, and the axes of its mean."""
    convolution = WeightNormConv2d(3, 5, 3, padding=1)
    images = torch.randn(4, 3, 6, 6) + 1
    yield convolution, images, partial(F.conv2d, padding=1), (0, 2, 3)
    yield WeightNormLinear(7, 5), torch.randn(16, 7) + 1, F.linear, (0,)


@pytest.mark.parametrize("kind", [0, 1], ids=["convolution", "linear"])
@pytest.mark.parametrize("training", [True, False])
def test_weight_norm_against_float64(kind, training):
    layer, inputs, linear_map, axes = list(weight_norm_layers())[kind]
    for values in (layer.gain, layer.bias, layer.eval_mean):
        values.data.normal_()
    layer.train(training)
    v, g, b, eval_mean = (
        x.detach().double() for x in (layer.weight, layer.gain, layer.bias, layer.eval_mean)
    )
    outputs = layer(inputs)

    shape = (-1, 1, 1) if kind == 0 else (-1,)
    scale = g / v.flatten(1).square().sum(1).sqrt()
    if kind == 0:
        v, scale = v * scale.view(-1, 1, 1, 1), torch.ones_like(scale)
    raw = linear_map(inputs.double(), v)
    mean = raw.mean(axes) if training else eval_mean
    expected = (raw - mean.view(shape)) * scale.view(shape) + b.view(shape)
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-5)
    moved = 0.999 * eval_mean + 0.001 * mean if training else eval_mean
    torch.testing.assert_close(layer.eval_mean.double(), moved, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [0, 1], ids=["convolution", "linear"])
def test_weight_norm_gradients(kind):
    layer, inputs, _, _ = list(weight_norm_layers())[kind]
    layer, inputs = layer.double(), inputs[:2].double().requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def outputs(inputs, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), inputs)

    assert torch.autograd.gradcheck(outputs, (inputs, *layer.parameters()))


def test_eval_mean_starts_at_zero_and_is_not_corrected():
    layer = WeightNormLinear(7, 5)
    batches = [torch.randn(16, 7) + 3 for _ in range(3)]
    expected = torch.zeros(5)
    for batch in batches:
        layer(batch)
        expected = 0.999 * expected + 0.001 * (batch @ layer.weight.T).mean(0)
    torch.testing.assert_close(layer.eval_mean, expected.detach())
    before = layer.eval_mean.clone()
    layer.eval()(batches[0])
    assert torch.equal(layer.eval_mean, before)


def weight_norms(model):
    return [module for module in model.modules() if isinstance(module, WeightNormConv2d | WeightNormLinear)]


@pytest.mark.parametrize("heads", [1, 2])
def test_first_gains_give_every_layer_variance_one(heads):
    model = ConvNet13(10, heads=heads, dropout=0.0, noise=0.0).eval()
    images = torch.rand(16, 3, 16, 16)
    layers = weight_norms(model)
    assert len(layers) == 9 + heads
    for layer in layers:
        layer.bias.data.fill_(0.3)
    model.initialize(images)
    assert not model.training and not any(layer.training for layer in layers)
    assert all(layer.eval_mean.count_nonzero() == 0 == layer.bias.count_nonzero() for layer in layers)

    def check(layer, inputs, outputs):
        assert outputs.shape[1] == len(layer.gain)
        axes = [0, *range(2, outputs.ndim)]
        variance, mean = torch.var_mean(outputs, axes, correction=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-3, atol=0)
        assert mean.abs().max() < 1e-4
        seen.append(layer)

    seen = []
    for layer in layers:
        layer.register_forward_hook(check)
    model.train()(images)
    assert seen == layers


def test_first_gains_are_for_the_network_with_noise_and_dropout():
    with_noise = ConvNet13(10, dropout=0.0, noise=5.0)
    without = ConvNet13(10, dropout=0.0, noise=0.0)
    without.load_state_dict(with_noise.state_dict())
    images = torch.rand(4, 3, 12, 12)
    for model in (with_noise, without):
        model.initialize(images)
    noisy, clean = weight_norms(with_noise)[0].gain, weight_norms(without)[0].gain
    assert (noisy < clean / 2).all()


def test_noise_comes_after_the_normalization_and_in_training_alone():
    layer = ConvNet13(10, noise=0.15, normalize=True).features[0]
    images = torch.rand(64, 3, 12, 12) * torch.logspace(-2, 2, 64).view(-1, 1, 1, 1) + 5
    normal = layer.eval()(images)
    variance, mean = torch.var_mean(normal, (1, 2, 3), correction=0)
    assert mean.abs().max() < 1e-3
    torch.testing.assert_close(variance, torch.ones(64), rtol=2e-3, atol=0)
    noise = layer.train()(images) - normal
    assert noise.std().item() == pytest.approx(0.15, rel=0.03) and abs(noise.mean().item()) < 0.005
    assert torch.equal(ConvNet13(10, noise=0.15).eval().features[0](images), images)
    assert torch.equal(ConvNet13(10, noise=0.0).features[0](images), images)
    assert layer(torch.full((1, 3, 12, 12), 0.3)).isfinite().all()


# networks from elsewhere


@pytest.mark.parametrize("arch", ["timm:resnet10t", "timm:mobilenetv3_small_050"])
def test_timm(arch):
    pytest.importorskip("timm")
    images = torch.rand(2, 1, 32, 32)
    assert make_model(arch, 7, channels=1)(images).shape == (2, 7)
    both = make_model(arch, 7, channels=1, heads=2)(images)
    assert [logits.shape for logits in both] == [(2, 7), (2, 7)]


class Tiny(nn.Module):
    """Someone's own network; its head is inside another module."""

    def __init__(self, num_classes, bias=True):
        super().__init__()
        self.hidden = nn.Linear(48, 5)
        self.top = nn.Sequential(nn.ReLU(), nn.Linear(5, num_classes, bias=bias))

    def forward(self, images):
        return self.top(self.hidden(images.flatten(1)))

    @classmethod
    def biasless(cls, num_classes):
        return cls(num_classes, bias=False).double()


def convolutional(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 4), nn.Flatten())


def fixed(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 1000))


def no_module(num_classes):
    return {"classes": num_classes}


def too_much(num_classes, depth):
    return Tiny(num_classes)


@pytest.mark.parametrize("name", ["Tiny", "Tiny.biasless", "convolutional"])
def test_a_callable_by_its_path(name):
    torch.manual_seed(3)
    model = make_model(f"{__name__}:{name}", 7, channels=3)
    torch.manual_seed(3)
    own = eval(name)(num_classes=7)
    assert str(model) == str(own)
    images = torch.rand(2, 3, 4, 4, dtype=next(model.parameters()).dtype)
    assert torch.equal(model(images), own(images))


@pytest.mark.parametrize("name", ["Tiny", "Tiny.biasless"])
def test_a_callable_with_two_heads(name):
    torch.manual_seed(3)
    one = make_model(f"{__name__}:{name}", 7, channels=3)
    torch.manual_seed(3)
    two = make_model(f"{__name__}:{name}", 7, channels=3, heads=2)
    images = torch.rand(2, 3, 4, 4, dtype=next(one.parameters()).dtype)
    class_logits, consistency_logits = two(images)
    assert torch.equal(class_logits, one(images))  # the second head changes nothing of the first
    assert consistency_logits.shape == (2, 7) and not torch.equal(class_logits, consistency_logits)
    added = sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters())
    assert added == (42 if name == "Tiny" else 35)


# refused


HERE = __name__
NAMES = "convnet, convnet13, cifar_shakeshake26, resnext152, wrn-28-K, timm:NAME or package.module:callable"


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("convnet31", {}, f"model must be one of {NAMES}, got 'convnet31'; did you mean 'convnet13'?"),
        ("wrn-28-0", {}, f"model must be one of {NAMES}, got 'wrn-28-0'; did you mean 'wrn-28-2'?"),
        ("?", {}, f"model must be one of {NAMES}, got '?'"),
        ("convnet", {"heads": 3}, "heads must be 1 or 2, got 3"),
        (
            "convnet13",
            {"pretrained": True},
            "pretrained must be off for a model not of timm, got 'convnet13'",
        ),
        (
            f"{HERE}:Tinny",
            {},
            f"model must name what can be imported, got '{HERE}:Tinny': module '{HERE}' has no attribute 'Tinny'",
        ),
        (
            "no_such.module:Net",
            {},
            "model must name what can be imported, got 'no_such.module:Net': No module named 'no_such'"
            " (is its folder on PYTHONPATH?)",
        ),
        (f"{HERE}:NAMES", {}, f"model must name a callable, got '{HERE}:NAMES', a str"),
        (f"{HERE}:no_module", {}, f"model '{HERE}:no_module' must return an nn.Module, got a dict"),
        (
            f"{HERE}:too_much",
            {},
            f"model '{HERE}:too_much' must take num_classes=7 and no more: missing a required argument: 'depth'",
        ),
        (
            f"{HERE}:convolutional",
            {"heads": 2},
            f"model '{HERE}:convolutional' must end in an nn.Linear of 7 outputs to get two heads, got none",
        ),
        (
            f"{HERE}:fixed",
            {"heads": 2},
            f"model '{HERE}:fixed' must end in an nn.Linear of 7 outputs to get two heads, got '1' with 1000",
        ),
    ],
)
def test_refused(arch, options, message):
    with pytest.raises(SettingError) as refusal:
        make_model(arch, 7, channels=3, **options)
    assert str(refusal.value) == message


def test_timms_refusals(monkeypatch):
    timm = pytest.importorskip("timm")
    with pytest.raises(SettingError) as refusal:
        make_model("timm:resnett18", 7, channels=3)
    has = f"model must be one that timm {timm.__version__} has"
    assert str(refusal.value) == f"{has}, got 'timm:resnett18'; did you mean 'timm:resnet18'?"
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        SettingError, match=r"^model 'timm:resnet18' needs timm: pip install timm \(import of timm halted"
    ):
        make_model("timm:resnet18", 7, channels=3)
