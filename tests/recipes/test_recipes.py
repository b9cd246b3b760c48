"""Recipes on the smallest networks: what is logged is what is learned, and who is asked to do what."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairweather.generators import GENERATORS
from fairweather.recipes import (
    RECIPES,
    Batch,
    CycleGAN,
    CycleGANSettings,
    Pix2Pix,
    Recipe,
    Supervised,
    SupervisedSettings,
)
from fairweather.recipes.supervised import negative_psnr


class Dye(nn.Module):
    """Adds a trainable value to every pixel and remembers what it was given."""

    multiple_of = 1

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(0.1))
        self.given: list[Tensor] = []

    def forward(self, photo: Tensor) -> Tensor:
        self.given.append(photo)
        return photo + self.amount


class Teacher:
    """A `learn` that moves nobody: it notes losses, and what each asks of every parameter of the recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.losses: dict[str, Tensor] = {}
        self.recalled: dict[str, tuple[Tensor, int]] = {}

    def __call__(self, player: str, loss: Tensor) -> None:
        assert player in self.recipe.players()
        parameters = list(self.recipe.players()[player].parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert all(gradient is not None for gradient in gradients), f"{player} does not learn all that it owns"
        self.losses[player] = loss.detach()

    def recall(self, name: str, fakes: Tensor, size: int) -> Tensor:
        self.recalled[name] = (fakes, size)
        return fakes.detach() * 0 + 0.25


def made(recipe: str, **settings: Any) -> Recipe:
    torch.manual_seed(0)
    kind = RECIPES[recipe]
    widths = {"width": 4} if "width" in {field.name for field in fields(kind.settings_type)} else {}
    return kind(Dye, kind.settings_type(**widths, **settings))


def batch(n: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(n, 3, 32, 32, generator=generator), torch.rand(n, 3, 32, 32, generator=generator))


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
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_logged_terms_add_up_to_what_is_learned(name: str, settings: dict[str, Any]) -> None:
    recipe = made(name, **settings)
    learn = Teacher(recipe)
    terms = recipe.step(batch(), learn)
    assert learn.losses.keys() == recipe.players().keys()
    torch.testing.assert_close(sum(terms.values()), sum(learn.losses.values()))
    judged = sum((value for term, value in terms.items() if term.startswith("discriminator")), torch.tensor(0.0))
    judge = sum(
        (loss for player, loss in learn.losses.items() if player.startswith("discriminator")), torch.tensor(0.0)
    )
    torch.testing.assert_close(judged, judge)
    assert not any(torch.equal(value, torch.zeros(())) for value in terms.values())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_players_own_every_parameter_once(name: str) -> None:
    recipe = made(name)
    owned = [id(p) for player in recipe.players().values() for p in player.parameters()]
    assert sorted(owned) == sorted(id(p) for p in recipe.parameters())
    assert recipe.shipped() is recipe.restore
    assert is_dataclass(recipe.settings_type)
    assert recipe.generator in GENERATORS


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_setting_says_what_it_is(name: str) -> None:
    """A docstring stands under each field: as many as there are fields, and the class has one."""
    import ast
    import inspect

    said = 0
    for kind in RECIPES[name].settings_type.__mro__[:-1]:
        tree = ast.parse(inspect.getsource(kind)).body[0]
        assert isinstance(tree, ast.ClassDef)
        body = tree.body[1:]
        for field, words in zip(body[::2], body[1::2], strict=True):
            assert isinstance(field, ast.AnnAssign)
            assert isinstance(words, ast.Expr)
            assert isinstance(words.value, ast.Constant)
            said += 1
    assert said == len(fields(RECIPES[name].settings_type))


def test_cyclegan_crosses_domains() -> None:
    """Translation, cycle and identity each go through the generator that they are about."""
    recipe = made("cyclegan")
    assert isinstance(recipe, CycleGAN)
    photos = batch(1)
    with torch.no_grad():
        recipe.restore.amount.fill_(0.25)
        recipe.degrade.amount.fill_(-0.5)
    terms = {name: term.detach() for name, term in recipe.step(photos, Teacher(recipe)).items()}
    restore, degrade = recipe.restore.given, recipe.degrade.given
    # restore sees the degraded photo, what degrade made of the clear one, and the clear one (identity)
    for seen, wanted in zip(restore, [photos.degraded, photos.clear - 0.5, photos.clear], strict=True):
        torch.testing.assert_close(seen, wanted)
    for seen, wanted in zip(degrade, [photos.clear, photos.degraded + 0.25, photos.degraded], strict=True):
        torch.testing.assert_close(seen, wanted)
    # there and back changes a photo by 0.25 - 0.5; identity by each generator's own amount
    expected = {"cycle_degraded": 2.5, "cycle_clear": 2.5, "identity_clear": 1.25, "identity_degraded": 2.5}
    for term, value in expected.items():
        assert float(terms[term]) == pytest.approx(value, rel=1e-4), term
    with torch.no_grad():
        judged = {
            "adversarial_clear": recipe.judge_clear(photos.degraded + 0.25),
            "adversarial_degraded": recipe.judge_degraded(photos.clear - 0.5),
        }
    for term, scores in judged.items():
        torch.testing.assert_close(terms[term], (scores - 1).square().mean())


def test_cyclegan_discriminators_see_the_pool_and_half_their_loss() -> None:
    recipe = made("cyclegan", pool=7)
    assert isinstance(recipe, CycleGAN)
    learn, photos = Teacher(recipe), batch(1)
    terms = recipe.step(photos, learn)
    torch.testing.assert_close(learn.recalled["clear"][0], photos.degraded + 0.1)
    torch.testing.assert_close(learn.recalled["degraded"][0], photos.clear + 0.1)
    assert {size for _, size in learn.recalled.values()} == {7}
    from_pool = torch.full((1, 3, 32, 32), 0.25)
    for name, judge, real in (
        ("clear", recipe.judge_clear, photos.clear),
        ("degraded", recipe.judge_degraded, photos.degraded),
    ):
        expected = 0.5 * ((judge(real) - 1).square().mean() + judge(from_pool).square().mean())
        torch.testing.assert_close(terms[f"discriminator_{name}"], expected)


def test_cyclegan_has_the_papers_settings_and_players() -> None:
    assert CycleGANSettings() == CycleGANSettings(cycle=10, identity=5, pool=50, lr=2e-4, beta1=0.5, hold=0.5, width=64)
    players = made("cyclegan").players()
    assert set(players) == {"generators", "discriminators"}
    for player in players.values():
        assert (player.optimizer, player.lr, player.betas) == ("adam", 2e-4, (0.5, 0.999))
        assert player.schedule == "linear"
    assert (CycleGAN.batch, CycleGAN.epochs, CycleGAN.crop, CycleGAN.paired) == (1, 200, 256, False)


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [
        ("cyclegan", {"generators": 2 * 11_378_179, "discriminators": 2 * 2_764_737}),
        ("pix2pix", {"generator": 54_413_955, "discriminator": 2_768_705}),
    ],
)
def test_the_papers_parameter_counts(recipe: str, counts: dict[str, int]) -> None:
    kind = RECIPES[recipe]
    with torch.device("meta"):
        players = kind(GENERATORS[kind.generator]).players()
    assert {name: sum(p.numel() for p in player.parameters()) for name, player in players.items()} == counts


def test_pix2pix_judges_pairs_and_moves_the_judge_first() -> None:
    recipe = made("pix2pix")
    assert isinstance(recipe, Pix2Pix)
    photos, order = batch(), []
    seen: list[Tensor] = []
    recipe.judge.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))

    class Ordered(Teacher):
        def __call__(self, player: str, loss: Tensor) -> None:
            order.append((player, len(seen)))
            super().__call__(player, loss)

    terms = recipe.step(photos, Ordered(recipe))
    assert order == [("discriminator", 2), ("generator", 3)]
    torch.testing.assert_close(seen[0], torch.cat([photos.degraded, photos.clear], 1))
    torch.testing.assert_close(seen[1], torch.cat([photos.degraded, photos.degraded + 0.1], 1))
    torch.testing.assert_close(seen[2], seen[1])
    expected = 100 * (photos.degraded + 0.1 - photos.clear).abs().mean()
    torch.testing.assert_close(terms["l1"].detach(), expected)


def test_supervised_has_a_judge_only_when_asked() -> None:
    assert set(made("supervised").players()) == {"generator"}
    recipe = made("supervised", adversarial=0.1)
    assert set(recipe.players()) == {"generator", "discriminator"}
    assert isinstance(recipe, Supervised)
    assert recipe.judge is not None
    assert any("parametrizations" in name for name, _ in recipe.judge.named_modules())


def test_psnr_term_is_psnr_below_its_ceiling() -> None:
    target = torch.zeros(2, 3, 4, 4)
    output = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])  # 20 and 40 dB
    assert float(negative_psnr(output, target, 200.0)) == pytest.approx(-30.0, abs=1e-3)
    assert float(negative_psnr(target, target, 35.0)) == pytest.approx(-35.0, abs=1e-3)


def test_ema_is_on_for_supervised_and_off_for_the_papers() -> None:
    assert made("supervised").ema == SupervisedSettings().ema > 0.9
    assert made("cyclegan").ema == made("pix2pix").ema == 0
