"""The engine: gradients of one group alone, clipping, precisions, what it refuses."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fairweather.errors import BadFolder, BadSettings
from fairweather.recipes import Batch, Build, OptimizerGroup, Recipe, Update
from fairweather.training.optimization import TrainingEngine, choose_device, choose_precision


class Duel(Recipe):
    """Two scalars; `second` learns through `first`, whose value it sees after `first` has moved."""

    paired: ClassVar[bool] = True

    def __init__(self, build: Build | None = None, settings: Any = None) -> None:
        nn.Module.__init__(self)
        self.first, self.second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        for module in (self.first, self.second):
            nn.init.constant_(module.weight, 0.5)
        self.clip: float | None = None
        self.seen: list[Tensor] = []
        self.scale = 1.0

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        return {
            "first": OptimizerGroup((self.first,), lr=0.25, clip=self.clip),
            "second": OptimizerGroup((self.second,), lr=0.25),
        }

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        one = self.scale * self.first(self.second(batch.degraded)).float().mean()
        self.seen.append(self.first(batch.degraded).float().mean().detach())
        update("first", one)
        after = self.first(self.second(batch.degraded)).float().mean()
        self.seen.append(self.first(batch.degraded).float().mean().detach())
        update("second", after)
        return {"one": one, "after": after}

    def restorer_network(self) -> nn.Module:
        return self.first


def batch() -> Batch:
    return Batch(torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.5))


def test_learning_moves_one_player_and_leaves_no_gradients() -> None:
    recipe = Duel()
    engine = TrainingEngine(recipe, device="cpu", precision="fp32")
    weights = {name: p.detach().clone() for name, p in recipe.named_parameters()}
    with engine.autocast():
        engine("first", recipe.first(recipe.second(batch().degraded)).mean())
    assert torch.equal(recipe.second.weight, weights["second.weight"])
    assert not torch.equal(recipe.first.weight, weights["first.weight"])
    assert all(p.grad is None for p in recipe.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_later_player_sees_what_the_first_has_become(precision: Any) -> None:
    """Autocast keeps 16-bit copies of weights; after a step they would be those of before."""
    recipe = Duel()
    TrainingEngine(recipe, device="cpu", precision=precision).step(batch(), 0.0)
    # Adam's first step is its learning rate: weights go from 0.5 to 0.25, and the photo is 0.5 in three channels.
    assert [float(value) for value in recipe.seen] == pytest.approx([0.75, 0.375], abs=0.01)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_nan_stops_before_anything_moves(scale: float) -> None:
    recipe = Duel()
    engine = TrainingEngine(recipe, device="cpu", precision="fp32")
    recipe.scale = scale
    before = recipe.first.weight.detach().clone()
    with pytest.raises(FloatingPointError, match=f"loss of first is {scale}"):
        engine.step(batch(), 0.0)
    assert torch.equal(recipe.first.weight, before)


def test_an_infinite_gradient_of_a_finite_loss_stops_too() -> None:
    recipe = Duel()
    engine = TrainingEngine(recipe, device="cpu", precision="fp32")
    before = recipe.first.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient of first"):
        engine("first", (recipe.first.weight - 0.5).square().sum().sqrt())
    assert torch.equal(recipe.first.weight, before)


def test_clipping_shortens_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for clip in (None, 0.01):
        recipe = Duel()
        recipe.clip = clip
        engine = TrainingEngine(recipe, device="cpu", precision="fp32")
        wrapped = engine._wrapped["first"]

        def note(recipe: Duel = recipe) -> None:
            assert recipe.first.weight.grad is not None
            norms.append(float(recipe.first.weight.grad.norm()))

        monkeypatch.setattr(wrapped, "step", note)
        engine("first", recipe.first(batch().degraded).mean())
    assert norms[0] == pytest.approx(0.5, rel=0.01)  # nine weights, each 0.5 / 3
    assert norms[1] == pytest.approx(0.01, rel=0.01)


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(BadSettings, match="gradient scaler"):
        choose_precision("fp16", "cpu")
    assert choose_precision("bf16", "cpu") == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(BadSettings, match="cuda"):
        choose_device("cuda")
    assert choose_device("auto") != "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_fp16_scales_its_gradients() -> None:
    recipe = Duel()
    engine = TrainingEngine(recipe, device="cuda", precision="fp16")
    engine.step(batch(), 0.0)
    assert engine.state()["scaler"]["scale"] > 1
    assert torch.isfinite(recipe.first.weight).all()


def scaling(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> tuple[TrainingEngine, torch.amp.GradScaler]:
    """An engine as fp16 makes it on a GPU, here on the CPU, for which PyTorch too has a gradient scaler."""
    from lightning.fabric.plugins.precision import MixedPrecision

    from fairweather.training import optimization as module

    monkeypatch.setattr(module, "choose_precision", lambda *_: "fp16")
    engine = TrainingEngine(recipe, device="cpu", precision="fp16")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    engine.fabric._strategy._precision = MixedPrecision("16-mixed", "cpu", scaler)
    assert engine.fabric.strategy.precision.scaler is scaler
    return engine, scaler


def test_players_share_a_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """One group's overflow skips its step alone and halves the scale; the other's next step is what it would be."""
    recipe, plain = Duel(), Duel()
    recipe.clip = plain.clip = 0.01
    engine, scaler = scaling(monkeypatch, recipe)
    reference = TrainingEngine(plain, device="cpu", precision="fp32")
    before = recipe.first.weight.detach().clone()
    engine("first", 1e37 * recipe.first.weight.sum())  # finite, until it is scaled
    assert torch.equal(recipe.first.weight, before)
    assert scaler.get_scale() == 512
    for _ in range(2):
        for one, other in ((engine, recipe), (reference, plain)):
            one("second", (other.second.weight**2).sum())
            one("first", 100 * other.first(other.second(batch().degraded)).mean())
    for ours, theirs in zip(recipe.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(recipe.first.weight, before)
    # Every group's step counts towards the growth: after an interval of 3 good ones of either.
    assert scaler.get_scale() == 1024


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Duel()
    recipe.clip = 1.0
    engine, _ = scaling(monkeypatch, recipe)
    norms = []
    monkeypatch.setattr(engine._wrapped["first"], "step", lambda: norms.append(float(recipe.first.weight.grad.norm())))
    engine("first", recipe.first(batch().degraded).mean())
    assert norms == [pytest.approx(0.5, rel=0.01)]  # as in fp32: shorter than the clip, hence left alone


def test_a_checkpoint_of_other_networks_is_told_in_a_sentence() -> None:
    state = TrainingEngine(Duel(), device="cpu", precision="fp32").state()
    state["recipe"]["first.parametrizations.weight.0._u"] = torch.ones(3)
    with pytest.raises(BadFolder, match=r"other networks .*_u.*start another run"):
        TrainingEngine(Duel(), device="cpu", precision="fp32").load_state(state)
