"""All recipes on small networks: logged terms, optimizer groups, parameter counts, documentation of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fairweather.discriminators import PatchGAN
from fairweather.generators import GENERATORS
from fairweather.recipes import RECIPES, Batch, Pix2Pix, Supervised, SupervisedSettings, SupervisedVideoSettings
from fairweather.recipes.supervised import negative_psnr
from tests.recipes.standins import RecordingUpdate, Tint, batch, made

CASES = [
    ("cyclegan", {}),
    ("cyclegan", {"identity": 0.0}),
    ("claritygan", {}),
    ("claritygan", {"perceptual": 0.0}),
    ("derain", {}),
    ("hazeheal", {}),
    ("hazeheal", {"perceptual": 0.0, "mask": "transmission"}),
    ("pix2pix", {}),
    ("supervised", {}),
    ("supervised", {"psnr": 0.01, "frequency": 0.0}),
    ("supervised", {"adversarial": 0.01}),
    ("supervised", {"adversarial": 0.01, "discriminator_warmup": 0}),
    ("supervised_video", {}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_logged_terms_add_up_to_the_losses(name: str, settings: dict[str, Any]) -> None:
    recipe = made(name, **settings)
    update = RecordingUpdate(recipe)
    terms = recipe.step(batch(), update)
    assert update.losses.keys() == recipe.optimizer_groups().keys()
    torch.testing.assert_close(sum(terms.values()), sum(update.losses.values()))
    scores = sum((value for term, value in terms.items() if term.startswith("discriminator")), torch.tensor(0.0))
    discriminator = sum(
        (loss for group, loss in update.losses.items() if group.startswith("discriminator")), torch.tensor(0.0)
    )
    torch.testing.assert_close(scores, discriminator)
    assert not any(torch.equal(value, torch.zeros(())) for value in terms.values())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_groups_hold_every_parameter_once(name: str) -> None:
    recipe = made(name)
    owned = [id(p) for group in recipe.optimizer_groups().values() for p in group.parameters()]
    assert sorted(owned) == sorted(id(p) for p in recipe.parameters())
    assert recipe.restorer_network() is recipe.restore
    assert is_dataclass(recipe.settings_type)
    assert recipe.generator in GENERATORS


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_setting_has_a_docstring(name: str) -> None:
    """One below each field, and one of the class."""
    import ast
    import inspect

    documented = 0
    for kind in RECIPES[name].settings_type.__mro__[:-1]:
        tree = ast.parse(inspect.getsource(kind)).body[0]
        assert isinstance(tree, ast.ClassDef)
        body = tree.body[1:]
        for field, words in zip(body[::2], body[1::2], strict=True):
            assert isinstance(field, ast.AnnAssign)
            assert isinstance(words, ast.Expr)
            assert isinstance(words.value, ast.Constant)
            documented += 1
    assert documented == len(fields(RECIPES[name].settings_type))


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [
        ("cyclegan", {"generators": 2 * 11_378_179, "discriminators": 2 * 2_764_737}),
        ("claritygan", {"generators": 2 * 11_378_179, "discriminators": 2 * 2_764_737}),
        ("derain", {"generators": 2 * 54_413_955, "discriminators": 2 * 2_764_737}),
        ("pix2pix", {"generator": 54_413_955, "discriminator": 2_768_705}),
        # pix2pix's discriminator without batch norm: 1,792 gains and offsets fewer, 896 biases more
        ("hazeheal", {"generator": None, "discriminator": 2_767_809}),
    ],
)
def test_the_papers_parameter_counts(recipe: str, counts: dict[str, int | None]) -> None:
    kind = RECIPES[recipe]
    with torch.device("meta"):
        groups = kind(lambda: GENERATORS[kind.generator](**kind.arguments)).optimizer_groups()
    found = {name: sum(p.numel() for p in group.parameters()) for name, group in groups.items()}
    if counts.get("generator", 0) is None:  # no paper's: its own page says how many
        counts["generator"] = found["generator"]
        assert f"{found['generator']:,} parameters" in " ".join((GENERATORS[kind.generator].__doc__ or "").split())
    assert found == counts


def test_pix2pix_updates_the_discriminator_on_pairs_first() -> None:
    recipe = made("pix2pix")
    assert isinstance(recipe, Pix2Pix)
    photos, order = batch(), []
    seen: list[Tensor] = []
    recipe.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))

    class Ordered(RecordingUpdate):
        def __call__(self, group: str, loss: Tensor) -> None:
            order.append((group, len(seen)))
            super().__call__(group, loss)

    terms = recipe.step(photos, Ordered(recipe))
    assert order == [("discriminator", 2), ("generator", 3)]
    torch.testing.assert_close(seen[0], torch.cat([photos.degraded, photos.clear], 1))
    torch.testing.assert_close(seen[1], torch.cat([photos.degraded, photos.degraded + 0.1], 1))
    torch.testing.assert_close(seen[2], seen[1])
    expected = 100 * (photos.degraded + 0.1 - photos.clear).abs().mean()
    torch.testing.assert_close(terms["l1"].detach(), expected)


def test_supervised_has_a_discriminator_only_with_an_adversarial_term() -> None:
    assert set(made("supervised").optimizer_groups()) == {"generator"}
    recipe = made("supervised", adversarial=0.1)
    assert set(recipe.optimizer_groups()) == {"generator", "discriminator"}
    assert isinstance(recipe, Supervised)
    assert recipe.discriminator is not None
    assert any("parametrizations" in name for name, _ in recipe.discriminator.named_modules())


def test_psnr_term_is_psnr_below_its_ceiling() -> None:
    target = torch.zeros(2, 3, 4, 4)
    output = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])  # 20 and 40 dB
    assert float(negative_psnr(output, target, 200.0)) == pytest.approx(-30.0, abs=1e-3)
    assert float(negative_psnr(target, target, 35.0)) == pytest.approx(-35.0, abs=1e-3)


def test_ema_is_on_for_supervised_and_off_for_the_papers() -> None:
    assert made("supervised").ema == SupervisedSettings().ema > 0.9
    assert made("supervised_video").ema == SupervisedVideoSettings().ema > 0.9
    assert {made(name).ema for name in RECIPES if name not in ("supervised", "supervised_video")} == {0}


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"supervised_video"}))
def test_discriminators_return_logits(name: str) -> None:
    """No sigmoid at the end: whatever the last layer's bias lifts the scores to, they are there."""
    recipe = made(name, **({"adversarial": 0.1} if name == "supervised" else {}))
    discriminators = [module for module in recipe.modules() if isinstance(module, PatchGAN)]
    assert discriminators
    for discriminator in discriminators:
        *_, last = (module for module in discriminator.modules() if isinstance(module, torch.nn.Conv2d))
        assert last.bias is not None
        assert last.in_channels > 3, "not the last"
        first = next(module for module in discriminator.modules() if isinstance(module, torch.nn.Conv2d))
        photo = torch.rand(2, first.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))
        for lift in (-7.0, 7.0):
            with torch.no_grad():
                last.bias.fill_(lift)
                assert (discriminator(photo) - lift).abs().max() < 4


class Fixed(Tint):
    """Restores every photo to the same grey one, whatever it is given."""

    def forward(self, photo: Tensor) -> Tensor:
        return torch.zeros_like(photo) + 0.3 + self.amount


@pytest.mark.parametrize("name", ["pix2pix", "hazeheal"])
def test_a_conditional_discriminator_uses_the_condition(name: str) -> None:
    """Only the degraded photo changes, neither the restored one nor the truth: the game's terms do too."""
    recipe = made(name)
    recipe.restore = Fixed()
    scores = []
    for degraded in (batch().degraded, batch().degraded.flip(3)):
        torch.manual_seed(0)
        terms = recipe.step(Batch(degraded, batch().clear), RecordingUpdate(recipe))
        scores.append({term: float(terms[term].detach()) for term in ("adversarial", "discriminator")})
        assert recipe.discriminator.network[0].in_channels == 6
    for term in scores[0]:
        assert abs(scores[0][term] - scores[1][term]) > 1e-5, term


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_says_what_it_ships(name: str) -> None:
    recipe = made(name)
    directions = recipe.directions()
    assert directions["restore"] is recipe.restorer_network()
    assert ("degrade" in directions) is (not recipe.paired)
    assert recipe.weather == ("rain" if name == "derain" else "haze")
    assert isinstance(recipe.arguments, Mapping)
    with torch.device("meta"):
        GENERATORS[recipe.generator](**recipe.arguments)
    notes = {"perceptual": "random VGG-19 features after relu1_2, relu2_1"}
    assert recipe.notes() == (notes if name in ("claritygan", "hazeheal") else {})
