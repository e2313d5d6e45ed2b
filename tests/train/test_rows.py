"""A batch in parts draws what the whole batch draws: masks, noise, gates, and so outputs and gradients."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor, nn

from mtkernels.train.models import make_model
from mtkernels.train.models.convnet13 import ConvNet13
from mtkernels.train.models.rows import DrawsByRow, Dropout, Rows, draws_alone, set_rows
from mtkernels.train.models.shake_shake import ShakeBlock
from mtkernels.train.models.weight_norm import WeightNormConv2d, WeightNormLinear

SIZES = {"convnet": 8, "convnet13": 12, "cifar_shakeshake26": 4, "wrn-28-1": 8}  # name -> height and width
PARTS = [torch.tensor([0, 1, 2, 6, 4]), torch.tensor([3, 7, 5])]
NORMS = (nn.BatchNorm2d, WeightNormConv2d, WeightNormLinear)
SEED = 5


def network(arch: str) -> nn.Module:
    """In training mode but for the layers whose batch statistics couple the rows."""
    torch.manual_seed(0)
    model = make_model(arch, 3, channels=3, width=4, dropout=0.4, noise=0.5).double()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eval()
    return model


def step(model: nn.Module, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the generator's state after the gradients; those are added to the parameters'."""
    torch.manual_seed(SEED)
    logits = model(images)
    (logits * weights).sum().backward()
    return logits.detach(), torch.get_rng_state()


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("arch", SIZES)
def test_parts_train_as_the_whole_batch(arch):
    whole = network(arch)
    parts = copy.deepcopy(whole)
    images = torch.rand(8, 3, SIZES[arch], SIZES[arch], dtype=torch.float64)
    weights = torch.randn(8, 3, dtype=torch.float64)
    expected, state = step(whole, images, weights)
    for index in PARTS:
        set_rows(parts, Rows(index, 8))
        logits, after = step(parts, images[index], weights[index])
        torch.testing.assert_close(logits, expected[index], rtol=1e-12, atol=1e-12)
        assert torch.equal(after, state)
    for mine, theirs in zip(gradients(parts), gradients(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12 * theirs.abs().max().item())

    set_rows(parts, None)
    for index, same in ((torch.arange(8), True), (PARTS[0], False)):
        torch.manual_seed(SEED)
        with torch.no_grad():
            assert torch.equal(parts(images[index]), expected[index]) is same


def inputs() -> Iterator[Tensor]:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        yield torch.randn(8, 7, dtype=dtype)
        yield torch.randn(8, 5, 3, 4, dtype=dtype)
        yield torch.randn(8, 5, 3, 4, dtype=dtype).to(memory_format=torch.channels_last)
        yield torch.randn(8, 5, 1, 1, dtype=dtype).to(memory_format=torch.channels_last)
        yield torch.randn(8, 1, 3, 4, dtype=dtype).to(memory_format=torch.channels_last)
        yield torch.randn(8, 5000, dtype=dtype)  # more than one thread's share of torch's


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
def test_masks_are_those_of_torchs_dropout(p, inplace):
    layer = Dropout(p, inplace)
    for whole in inputs():
        torch.manual_seed(SEED)
        expected = F.dropout(whole, p)
        state = torch.get_rng_state()
        for index in PARTS:
            torch.manual_seed(SEED)
            layer.rows = Rows(index, 8)
            part = torch.empty_like(whole[: len(index)]).copy_(whole[index])
            outputs = layer(part)
            assert torch.equal(outputs, expected[index]) and outputs.dtype == whole.dtype
            assert torch.equal(torch.get_rng_state(), state)
            assert inplace == (outputs.data_ptr() == part.data_ptr()) or p == 0


def test_noise_is_that_of_the_whole_batch_in_any_memory_format():
    layer = ConvNet13(2, noise=1.0).features[0]
    for whole in inputs():
        if whole.ndim == 4:
            torch.manual_seed(SEED)
            layer.rows = None
            expected = layer(whole)
            for index in PARTS:
                torch.manual_seed(SEED)
                layer.rows = Rows(index, 8)
                part = torch.empty_like(whole[: len(index)]).copy_(whole[index])
                assert torch.equal(layer(part), expected[index])


def test_evaluation_draws_nothing():
    model = make_model("convnet", 3, channels=3, width=4, dropout=0.5).eval()
    set_rows(model, Rows(PARTS[0], 8))
    images = torch.rand(5, 3, 8, 8)  # any number of rows
    state = torch.get_rng_state()
    assert model(images).shape == (5, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_number_of_rows_is_refused():
    layer = Dropout(0.5)
    set_rows(layer, Rows(PARTS[0], 8))
    with pytest.raises(ValueError, match=r"^a layer that draws by row must get the part's 5 rows, got 3$"):
        layer(torch.rand(3, 2))


def test_a_network_from_elsewhere():
    class DropPath(nn.Module):
        drop_prob = 0.1

    class Own(nn.Dropout):
        pass

    model = nn.Sequential(
        nn.Dropout(0.5), Own(0.5), nn.Dropout2d(0.5), nn.Dropout2d(0.0), nn.RReLU(), DropPath()
    )
    model.extend([nn.MultiheadAttention(4, 2, dropout=0.1), nn.MultiheadAttention(4, 2), nn.Linear(2, 2)])
    assert draws_alone(model) == ["1", "2", "4", "5", "6"]
    names = str(model)
    set_rows(model, None)
    assert type(model[0]) is nn.Dropout  # nothing to know
    set_rows(model, Rows(PARTS[0], 8))
    assert type(model[0]) is Dropout and isinstance(model[0], nn.Dropout) and model[0].rows.total == 8
    assert str(model) == names and draws_alone(model) == ["1", "2", "4", "5", "6"]
    assert draws_alone(make_model("convnet13", 3, channels=3, dropout=0.5)) == []


def test_a_compiled_network_takes_new_rows_without_compiling_again():
    torch.manual_seed(0)
    blocks = [ConvNet13(2, noise=0.5).features[0], ShakeBlock(3, 3, 1), Dropout(0.5)]
    model = nn.Sequential(*blocks).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    images = torch.rand(8, 3, 4, 4, dtype=torch.float64)
    torch.manual_seed(SEED)
    expected = model(images).detach()
    for index in (PARTS[0], torch.tensor([7, 3, 5, 4, 0])):
        set_rows(model, Rows(index, 8))
        model.zero_grad()
        logits, _ = step(compiled, images[index], torch.ones(5, 3, 4, 4, dtype=torch.float64))
        torch.testing.assert_close(logits, expected[index], rtol=1e-12, atol=1e-12)
        mine = gradients(model)
        model.zero_grad()
        step(model, images[index], torch.ones(5, 3, 4, 4, dtype=torch.float64))
        for one, two in zip(mine, gradients(model), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    assert graphs.frame_count == 1
    assert sum(isinstance(module, DrawsByRow) for module in model.modules()) == 3
