"""The training engine, Muon, EMA, sample histories, schedules, channels last and batch norm recalibration."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.errors import BadFolder, BadSettings
from fairweather.generators import GENERATORS
from fairweather.generators.conv_unet import ConvUNet
from fairweather.recipes import Batch, Build, OptimizerGroup, Recipe, Update
from fairweather.recipes.supervised import Supervised, SupervisedSettings
from fairweather.training.optimization import (
    EMA,
    ChannelsLastInstanceNorm,
    Muon,
    SampleHistory,
    TrainingEngine,
    choose_device,
    choose_precision,
    learning_rate,
    orthogonal,
    recalibrate_batchnorm,
    to_channels_last,
)
from tests.training.toy import Toy


class Duel(Recipe):
    """Two convolutions; the loss of `second` runs through `first`, after `first` was updated."""

    paired: ClassVar[bool] = True

    def __init__(self, build: Build | None = None, settings: Any = None) -> None:
        nn.Module.__init__(self)
        self.first, self.second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        for module in (self.first, self.second):
            nn.init.constant_(module.weight, 0.5)
        self.clip: float | None = None
        self.outputs: list[Tensor] = []
        self.scale = 1.0

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        return {
            "first": OptimizerGroup((self.first,), lr=0.25, clip=self.clip),
            "second": OptimizerGroup((self.second,), lr=0.25),
        }

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        one = self.scale * self.first(self.second(batch.degraded)).float().mean()
        self.outputs.append(self.first(batch.degraded).float().mean().detach())
        update("first", one)
        after = self.first(self.second(batch.degraded)).float().mean()
        self.outputs.append(self.first(batch.degraded).float().mean().detach())
        update("second", after)
        return {"one": one, "after": after}

    def restorer_network(self) -> nn.Module:
        return self.first


def engine_of(recipe: Recipe, precision: Any = "fp32") -> TrainingEngine:
    return TrainingEngine(recipe, device="cpu", precision=precision)


def batch() -> Batch:
    return Batch(torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.5))


def test_an_update_changes_one_group_and_leaves_no_gradients() -> None:
    recipe = Duel()
    engine = engine_of(recipe)
    before = {name: p.detach().clone() for name, p in recipe.named_parameters()}
    with engine.autocast():
        engine("first", recipe.first(recipe.second(batch().degraded)).mean())
    assert torch.equal(recipe.second.weight, before["second.weight"])
    assert not torch.equal(recipe.first.weight, before["first.weight"])
    assert all(p.grad is None for p in recipe.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_later_forward_pass_sees_the_update(precision: Any) -> None:
    """Autocast caches 16-bit copies of weights."""
    recipe = Duel()
    engine_of(recipe, precision).step(batch(), 0.0)
    # Adam's first step is its learning rate: weights go from 0.5 to 0.25, and the input is 0.5 in three channels.
    assert [float(value) for value in recipe.outputs] == pytest.approx([0.75, 0.375], abs=0.01)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_bad_loss_stops_before_the_update(scale: float) -> None:
    recipe = Duel()
    engine = engine_of(recipe)
    recipe.scale = scale
    with pytest.raises(FloatingPointError, match=f"loss of first is {scale}"):
        engine.step(batch(), 0.0)
    with pytest.raises(FloatingPointError, match="gradient of first"):  # the square root of zero
        engine("first", (recipe.first.weight - 0.5).square().sum().sqrt())
    assert (recipe.first.weight == 0.5).all()


def test_batch_norm_of_a_single_pixel_names_the_settings() -> None:
    recipe = Supervised(lambda: GENERATORS["scattering_maps"](size=32, widths=(4, 4, 4, 4)))
    photo = torch.rand(1, 3, 64, 64)
    with pytest.raises(BadSettings, match=r"run\.batch is 1.*generator\.size"):
        engine_of(recipe).step(Batch(photo, photo), 0.0)


def test_clipping_and_devices() -> None:
    norms = []
    for clip in (None, 0.01):
        recipe = Duel()
        recipe.clip = clip
        engine = engine_of(recipe)

        def note(recipe: Duel = recipe) -> None:
            assert recipe.first.weight.grad is not None
            norms.append(float(recipe.first.weight.grad.norm()))

        engine._wrapped["first"].step = note
        engine("first", recipe.first(batch().degraded).mean())
    assert norms == pytest.approx([0.5, 0.01], rel=0.01)  # nine weights, each 0.5 / 3
    with pytest.raises(BadSettings, match="gradient scaler"):
        choose_precision("fp16", "cpu")
    assert choose_precision("bf16", "cpu") == "bf16"
    if not torch.cuda.is_available():
        with pytest.raises(BadSettings, match="cuda"):
            choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_fp16_scales_its_gradients() -> None:
    recipe = Duel()
    engine = TrainingEngine(recipe, device="cuda", precision="fp16")
    engine.step(batch(), 0.0)
    assert engine.state()["scaler"]["scale"] > 1
    assert torch.isfinite(recipe.first.weight).all()


def test_groups_share_a_gradient_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fp16 on a GPU, here on the CPU: an overflow skips one group's update alone and halves the scale."""
    from lightning.fabric.plugins.precision import MixedPrecision

    from fairweather.training import optimization

    monkeypatch.setattr(optimization, "choose_precision", lambda *_: "fp16")
    recipe, plain = Duel(), Duel()
    recipe.clip = plain.clip = 0.01
    engine = engine_of(recipe, "fp16")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    engine.fabric._strategy._precision = MixedPrecision("16-mixed", "cpu", scaler)
    monkeypatch.undo()
    reference = engine_of(plain)
    engine("first", 1e37 * recipe.first.weight.sum())  # finite until it is scaled
    assert (recipe.first.weight == 0.5).all()
    assert scaler.get_scale() == 512
    for _ in range(2):
        for one, other in ((engine, recipe), (reference, plain)):
            one("second", (other.second.weight**2).sum())
            one("first", 100 * other.first(other.second(batch().degraded)).mean())
    for ours, theirs in zip(recipe.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)  # unscaled before clipping
    assert not (recipe.first.weight == 0.5).any()
    assert scaler.get_scale() == 1024, "every group's update counts towards the growth interval of 3"


def test_a_checkpoint_of_other_networks_is_refused() -> None:
    state = engine_of(Duel()).state()
    state["recipe"]["first.parametrizations.weight.0._u"] = torch.ones(3)
    with pytest.raises(BadFolder, match=r"does not fit .*_u.*start another run"):
        engine_of(Duel()).load_state(state)
    for part in ("optimizers", "history_generator", "histories"):
        with pytest.raises(BadFolder, match="does not fit"):
            engine_of(Duel()).load_state({**engine_of(Duel()).state(), part: {"first": []}})


# Muon


def gradients(module: nn.Module, steps: int) -> Iterator[None]:
    draw = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        yield


@pytest.mark.parametrize("shape", [(2, 24, 60), (2, 60, 24), (1, 32, 32)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 1e-4
    before, after = torch.linalg.svd(matrices), orthogonal(matrices)
    values = torch.linalg.svdvals(after)
    assert 0.5 < values.min() <= values.max() < 1.3
    # The directions are those of the matrix: U diag(s) V' with other s.
    rotated = before.U[..., :, : values.shape[1]].mT @ after @ before.Vh[..., : values.shape[1], :].mT
    assert (rotated - torch.diag_embed(torch.diagonal(rotated, dim1=1, dim2=2))).abs().max() < 1e-3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_a_convolution_is_updated_as_pytorch_updates_its_matrix() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(20, 32, 3, bias=False)
    matrix = nn.Parameter(convolution.weight.detach().flatten(1).clone())
    start = matrix.detach().clone()
    ours = Muon(convolution.parameters(), lr=0.01, weight_decay=0.1)
    other = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in gradients(convolution, 3):
        assert convolution.weight.grad is not None
        matrix.grad = convolution.weight.grad.flatten(1).clone()
        ours.step()
        other.step()
    assert (convolution.weight.flatten(1) - matrix).norm() < 0.05 * (matrix - start).norm()


def test_biases_and_heads_are_updated_as_by_adamw() -> None:
    torch.manual_seed(0)
    head = nn.Conv2d(20, 7, 3)
    twin = copy.deepcopy(head)
    ours = Muon(head.parameters(), lr=0.01, weight_decay=0.1)
    other = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for _ in zip(gradients(head, 4), gradients(twin, 4), strict=True):
        ours.step()
        other.step()
    for one, two in zip(head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_muon_lowers_the_loss_and_resumes_exactly() -> None:
    def engine() -> TrainingEngine:
        torch.manual_seed(5)
        settings = SupervisedSettings(optimizer="muon", ssim=0.0, clip=None)
        return engine_of(Supervised(lambda: ConvUNet(widths=(16, 16), encoder=(0, 1), decoder=(0,)), settings))

    draw = torch.Generator().manual_seed(9)
    data = [Batch(0.5 * clear + 0.4, clear) for clear in torch.rand(24, 2, 3, 16, 16, generator=draw)]
    whole, part, resumed = engine(), engine(), engine()
    losses = [float(whole.step(batch, 0.5)["charbonnier"]) for batch in data]
    assert losses[-1] < 0.7 * losses[0]
    for batch in data[:5]:
        part.step(batch, 0.5)
    resumed.load_state(copy.deepcopy(part.state()))
    for batch in data[5:]:
        resumed.step(batch, 0.5)
    for one, two in zip(whole.recipe.parameters(), resumed.recipe.parameters(), strict=True):
        assert torch.equal(one, two)


# Sample history, EMA, schedules


def fakes(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2)


def test_a_history_fills_and_then_swaps_half() -> None:
    history = SampleHistory(4, torch.Generator().manual_seed(0))
    assert torch.equal(history.sample(fakes(0, 1, 2, 3)), fakes(0, 1, 2, 3))
    fresh, stored = 0, {0.0, 1.0, 2.0, 3.0}
    for value in range(4, 404):
        returned = float(history.sample(fakes(value))[0, 0, 0, 0])
        fresh += returned == value
        if returned != value:
            assert returned in stored
            stored = stored - {returned} | {float(value)}
        assert {float(photo[0, 0, 0]) for photo in history.photos} == stored
    assert 160 <= fresh <= 240  # probability 1/2, four standard deviations
    assert torch.equal(SampleHistory(0, torch.Generator()).sample(fakes(1, 2)), fakes(1, 2))


def test_a_history_stores_copies_without_a_graph() -> None:
    history = SampleHistory(1, torch.Generator())
    photo = torch.ones(1, 3, 2, 2, requires_grad=True) * 1
    assert not history.sample(photo).requires_grad
    with torch.no_grad():
        photo.zero_()
    assert float(history.photos[0].sum()) == 12


def test_ema_is_the_recursion_for_weights_and_statistics() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = EMA(network, 0.9)
    expected, mean = network[0].weight.detach().clone(), 0.0
    for step in range(1, 200):
        with torch.no_grad():
            network[0].weight.add_(1.0)
            network[1].running_mean.fill_(float(step))
        decay = min(0.9, step / (9 + step))
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
        mean = decay * mean + (1 - decay) * step
        average.update(network)
    assert torch.allclose(average.module[0].weight, expected)
    assert float(average.module[1].running_mean) == pytest.approx(mean, rel=1e-4)
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
    assert network.training


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 1, 0.5: 1, 1: 1}),
        ({"schedule": "linear", "hold": 0.5}, {0: 1, 0.5: 1, 0.75: 0.5, 1: 0}),
        ({"schedule": "cosine"}, {0: 1, 0.5: 0.5, 1: 0, 1.2: 0}),
        ({"schedule": "cosine", "warmup": 0.2}, {0: 0.01, 0.1: 0.5, 0.2: 1, 0.6: 0.5, 1: 0}),
    ],
)
def test_schedules(options: dict[str, Any], expected: dict[float, float]) -> None:
    group = OptimizerGroup((), lr=2.0, **options)
    for progress, share in expected.items():
        assert learning_rate(group, progress) == pytest.approx(2 * share, abs=1e-12)


# Channels last, batch norm


@pytest.mark.parametrize("shape", [(1, 8, 12, 16), (3, 5, 9, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_instance_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features, slope = 3 * torch.randn(shape) + 1, torch.randn(shape)
    expected_input = features.clone().requires_grad_()
    expected = nn.InstanceNorm2d(shape[1])(expected_input)
    expected.backward(slope)
    given = features.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    found = ChannelsLastInstanceNorm(shape[1])(given)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == dtype
    found.backward(slope.to(dtype))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(found.float(), expected, **tolerance)
    torch.testing.assert_close(given.grad.float(), expected_input.grad, **tolerance)


def test_only_training_uses_the_channels_last_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    usual = nn.InstanceNorm2d.forward
    monkeypatch.setattr(nn.InstanceNorm2d, "forward", lambda self, x: (calls.append(1), usual(self, x))[1])
    layer, features = ChannelsLastInstanceNorm(4), torch.randn(2, 4, 6, 6)
    channels_last = features.contiguous(memory_format=torch.channels_last)
    layer(channels_last)
    assert not calls
    layer(features)
    layer.eval()(channels_last)
    assert len(calls) == 2


def test_channels_last_keeps_weights_and_outputs() -> None:
    torch.manual_seed(0)
    network = PatchGAN(width=8)
    photos = torch.rand(2, 3, 32, 32)
    before, state = network(photos), copy.deepcopy(network.state_dict())
    to_channels_last(network, "cpu")
    assert sum(type(part) is ChannelsLastInstanceNorm for part in copy.deepcopy(network).modules()) == 3
    torch.testing.assert_close(network(photos), before, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


class Ramp:
    """Samples whose brightness is their index: their statistics are known."""

    def __len__(self) -> int:
        return 32

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Tensor]:
        picture = torch.full((3, 4, 4), index / 31)
        return {"degraded": picture, "clear": picture}


def test_recalibrated_statistics_are_those_of_the_data() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    network[0].running_mean.fill_(9.0)
    recalibrated = recalibrate_batchnorm(network, Ramp(), seed=0, most=32)
    values = torch.arange(32).repeat_interleave(16).view(2, -1) / 31  # two batches of 16 pictures of 16 pixels
    assert torch.allclose(recalibrated[0].running_mean, values.mean().expand(3), atol=1e-6)
    assert torch.allclose(recalibrated[0].running_var, values.var(dim=1).mean().expand(3), atol=1e-6)
    assert not any(module.training for module in recalibrated.modules())
    assert (network[0].running_mean == 9).all(), "the network in training is unchanged"
    plain = nn.Conv2d(3, 3, 1)
    assert recalibrate_batchnorm(plain, Ramp(), seed=0) is plain


def test_recalibration_on_either_side_of_the_data() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    for side in ("clear", "degraded"):
        found = recalibrate_batchnorm(network, Toy(), seed=0, most=16, side=side)
        expected = torch.stack([Toy().sample(0, 0, at)[side] for at in range(5)]).mean((0, 2, 3))
        assert torch.allclose(found[0].running_mean, expected, atol=0.05)
