"""The training table: both sides take the same steps, a difference is seen, what misses its target stands out."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import plain_loops
import pytest
import torch
import training

from fairweather.recipes import RECIPES
from fairweather.training.export_run import build_recipe

TINY: dict[str, dict[str, Any]] = {
    "cyclegan": {"name": "resnet6", "width": 4, "blocks": 1},
    "pix2pix": {"name": "unet", "width": 4, "levels": 3},
    "claritygan": {"name": "resnet6", "width": 4, "blocks": 1},
    "hazeheal": {"name": "mbconv_unet", "width": 4, "levels": 2},
    "derain": {"name": "unet", "width": 4, "levels": 3, "dropout": 0.0},
    "supervised": {"name": "unet", "width": 4, "levels": 3},
}


def tiny(name: str) -> Any:
    """The recipe's settings in 32 px with the narrowest networks; one shallow layer of VGG-19."""
    from fairweather.training.config import complete_config

    own: dict[str, Any] = {"name": name}
    fields = {field.name for field in dataclasses.fields(RECIPES[name].settings_type)}
    own |= {key: value for key, value in {"width": 4, "layers": ["relu1_1"]}.items() if key in fields}
    return complete_config({"run": {"batch": 2}, "data": {"crop": 32}, "recipe": own, "generator": TINY[name]}, {})


def test_every_recipe_is_measured() -> None:
    ours = set(RECIPES) - {
        "supervised_video"
    }  # which is no system of somebody else's that a plain loop would stand for
    assert set(training.NAMES) == ours == set(plain_loops.PLAIN) == set(TINY)


@pytest.mark.parametrize("name", sorted(TINY))
def test_both_sides_take_the_same_steps(name: str) -> None:
    row = training.measure(name, "laptop", rounds=2, device="cpu", settings=tiny(name))
    assert row["agree"] <= training.DIGITS
    assert all(value > 0 for value in (*row["ms"].values(), *row["ratio"].values()))
    assert row["size"] == "2 x 32 px"


def test_another_loss_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_loops, "with_logits", lambda scores, wanted: scores.float().square().mean())
    torch.manual_seed(0)
    sides = training.Sides(build_recipe(tiny("pix2pix")), "fp32", "cpu")
    assert training.agreement(sides, list(training.batches_of(2, 2, 32))) > 0.01


def test_ratios_are_those_of_the_rounds() -> None:
    """A busy moment that slows both sides of one round changes no ratio."""
    calls: list[str] = []
    steps = {key: lambda _, key=key: calls.append(key) for key in ("a", "b")}
    times = training.take_turns(steps, ["batch"], 3)
    assert calls == ["a", "b", "b", "a"] * 2 + ["a", "b"]
    assert [len(one) for one in times.values()] == [3, 3]


def test_what_misses_its_target_stands_out() -> None:
    ms = {(kind, p): 100.0 for kind in ("ours", "plain") for p in ("fp32", "bf16")}
    good = {"recipe": "a", "generator": "g", "size": "1 x 2 px", "agree": 0.0, "precision": "bf16", "ms": ms}
    good |= {"ratio": {"fp32": 1.0, "bf16": 1.04}, "mixed": 0.6}
    bad = {**good, "recipe": "b", "agree": 1e-3, "ratio": {"fp32": 1.06, "bf16": 1.0}, "mixed": 0.7}
    lines = training.markdown([good, bad]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "**" not in lines[2]
    assert [cell.strip() for cell in lines[3].split("|") if "**" in cell] == ["**1e-03**", "**1.06**", "**0.70**"]


def test_it_prints_a_table_and_fails_where_losses_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "settings_of", lambda name, _: tiny(name))
    monkeypatch.setattr(sys, "argv", ["training.py"])
    assert training.main(["--recipe", "pix2pix", "--rounds", "1"]) == 0
    assert "| pix2pix | unet | 2 x 32 px | 0e+00 |" in capsys.readouterr().out
    monkeypatch.setattr(training, "agreement", lambda *_: 0.01)
    assert training.main(["--recipe", "pix2pix", "--rounds", "1"]) == 1
    assert "differ: pix2pix" in capsys.readouterr().out
