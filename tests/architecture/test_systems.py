"""docs/systems.md agrees with the code: defaults, parameter counts, files, and the logged terms in its figures."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import shlex
import tomllib
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.generators import GENERATORS
from fairweather.recipes import RECIPES, Batch
from tests.conftest import ROOT

SYSTEMS = ("cyclegan", "pix2pix", "claritygan", "hazeheal", "derain")
PAGE = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
PARTS = {name: text for name, _, text in (part.partition("\n") for part in PAGE.split("\n## ")[1:])}


def rows(marker: str) -> list[list[str]]:
    """The cells of the table below `<!-- marker -->`, without its heading."""
    lines = PAGE.split(f"<!-- {marker} -->\n")[1].splitlines()
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return table[2:]


def value(cell: str) -> Any:
    """A default as it stands in a settings file; `none` is one that is left out."""
    return None if cell == "none" else tomllib.loads(f"value = {cell}")["value"]


def plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("name", SYSTEMS)
def test_settings_are_the_recipes(name: str) -> None:
    table = rows(f"settings:{name}")
    fields = dataclasses.fields(RECIPES[name].settings_type)
    assert {row[0]: value(row[1]) for row in table} == {field.name: plain(field.default) for field in fields}
    assert all(row[2] for row in table)


@pytest.mark.parametrize("name", ["resnet9", "unet", "mbconv_unet", "multipath_unet"])
def test_arguments_are_the_generators(name: str) -> None:
    table = rows(f"arguments:{name}")
    expected = {key: plain(one.default) for key, one in inspect.signature(GENERATORS[name]).parameters.items()}
    assert {row[0]: value(row[1]) for row in table} == expected
    assert all(row[2] for row in table)


def test_every_generator_of_a_system_has_its_arguments_explained() -> None:
    for name in SYSTEMS:
        assert f"<!-- arguments:{RECIPES[name].generator} -->" in PAGE
    assert RECIPES["derain"].arguments == {"dropout": 0.0}
    assert "`dropout` is 0" in PARTS["derain"]


def test_the_table_of_recipes() -> None:
    table = {row[0]: row[1:] for row in rows("recipes:begin")}
    assert set(table) == set(SYSTEMS)
    for name, (generator, learns, *numbers, _) in table.items():
        kind = RECIPES[name]
        assert (generator, learns) == (kind.generator, "pairs" if kind.paired else "unpaired")
        assert [int(number) for number in numbers] == [kind.batch, kind.crop, kind.epochs]
    with torch.device("meta"):
        discriminators = {
            "cyclegan": PatchGAN(),
            "pix2pix": PatchGAN(6, norm="batch"),
            "hazeheal": PatchGAN(6, norm="none", spectral=True),
        }
    for name, discriminator in discriminators.items():
        assert f"{parameters(discriminator):,}" in table[name][-1]


def test_the_table_of_generators() -> None:
    table = {row[0]: row[1:] for row in rows("generators:begin")}
    assert set(table) == set(GENERATORS)
    for name, (count, multiple, large) in table.items():
        with torch.device("meta"):
            network: Any = GENERATORS[name]()
        assert f"{parameters(network):,}" == count, name
        assert network.multiple_of == int(multiple), name
        seen = "from a reduced copy" if network.output == "maps" else "in tiles" if network.receptive_field else None
        assert large == (seen or "in one piece"), name


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_part_has_every_command(name: str) -> None:
    lines = [line for line in PARTS[name].splitlines() if line.startswith("fairweather ")]
    said = [shlex.split(line)[1:] for line in lines]
    for config in (f"runs/{name}.toml", f"runs/{name}-laptop.toml"):
        assert any(words[0] == "train" and config in words for words in said), config
    assert ["train", "--out", f"run/{name}", "--resume"] in said
    for verb in ("evaluate", "export", "restore"):
        assert any(words[0] == verb and f"run/{name}" in words for words in said), verb
    degrades = any("degrade" in words for words in said)
    assert degrades == (not RECIPES[name].paired)
    for marker in ("begin", "end"):
        assert f"<!-- measured:{name}:{marker} -->" in PARTS[name]


def test_every_run_that_is_named_exists() -> None:
    named = {name for name in re.findall(r"runs/[\w-]+\.toml", PAGE) if "NAME" not in name}
    assert len(named) >= 2 * len(SYSTEMS)
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_readme_leads_here() -> None:
    assert "(docs/systems.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@cache
def drawing() -> ModuleType:
    """docs/systems/draw.py, without running it as a script."""
    spec = importlib.util.spec_from_file_location("drawing_of_systems", ROOT / "docs" / "systems" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_system_has_a_picture() -> None:
    assert set(SYSTEMS) <= set(drawing().FIGURES)
    for name in SYSTEMS:
        assert f"](systems/{name}.svg)" in PARTS[name]
    assert {path.stem for path in (ROOT / "docs" / "systems").glob("*.svg")} == set(drawing().FIGURES)


def test_the_pictures_are_what_the_script_draws() -> None:
    for name, draw in drawing().FIGURES.items():
        figure = draw()
        assert not figure.problems(), name
        kept = (ROOT / "docs" / "systems" / f"{name}.svg").read_text(encoding="utf-8")
        assert kept == figure.svg(), f"{name}.svg is not what draw.py draws: python docs/systems/draw.py"


def test_the_pictures_of_networks_show_their_channels() -> None:
    with torch.device("meta"):
        mbconv: Any = GENERATORS["mbconv_unet"]()
        multipath: Any = GENERATORS["multipath_unet"]()
    shown = {
        name: (ROOT / "docs" / "systems" / f"{name}.svg").read_text(encoding="utf-8")
        for name in ("mbconv_unet", "multipath_unet")
    }
    scales = [scale.down[0].out_channels for scale in mbconv.encoder]
    assert re.findall(r">(\d+) channels, 1/\d+ of", shown["mbconv_unet"]) == [str(count) for count in scales]
    assert re.findall(r">(\d+) channels<", shown["mbconv_unet"]) == [str(count) for count in scales[:-1]]
    fused = [str(fusion[0].out_channels) for fusion in multipath.fusions]
    assert re.findall(r">(\d+) channels each", shown["multipath_unet"]) == fused
    assert "dilation 1 · dilation 2 · dilation 3" in shown["multipath_unet"]
    assert len(multipath.paths) == 3


def test_a_bad_picture_is_told() -> None:
    drawing()
    from canvas import Figure

    figure = Figure("bad")
    figure.panel(0, 200, "")
    left = figure.box("photo", 20, 20, 80, "left")
    right = figure.box("photo", 300, 20, 80, "right")
    figure.arrow(left.at("right"), right.at("left"))
    assert not figure.problems()
    figure.box("photo", 150, 20, 80, "words that are too long for this box")
    figure.box("photo", 290, 50, 80, "right")
    found = " ".join(figure.problems())
    for word in ("wider", "touch", "through"):
        assert word in found


class Dot(nn.Module):
    """The smallest generator."""

    multiple_of = 1

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(0.1))

    def forward(self, photo: Tensor) -> Tensor:
        return photo + self.amount


class Watched:
    """A `learn` that moves nobody, and notes who was asked."""

    def __init__(self) -> None:
        self.optimizer_groups: list[str] = []

    def __call__(self, group: str, loss: Tensor) -> None:
        self.optimizer_groups.append(group)

    def sample_history(self, name: str, fakes: Tensor, size: int) -> Tensor:
        return fakes.detach()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_picture_shows_the_terms_that_are_logged(name: str) -> None:
    kind = RECIPES[name]
    small: dict[str, Any] = {"width": 2}
    if any(field.name == "layers" for field in dataclasses.fields(kind.settings_type)):
        small["layers"] = ("relu1_1",)
    update, batch = Watched(), Batch(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    terms = kind(Dot, kind.settings_type(**small)).step(batch, update)
    svg = (ROOT / "docs" / "systems" / f"{name}.svg").read_text(encoding="utf-8")
    assert set(re.findall(r'id="term-(\w+)"', svg)) == set(terms)
    assert re.findall(r"update\(&quot;(\w+)&quot;\)", svg) == update.optimizer_groups  # in the order of the moves


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_picture_shows_the_default_weights(name: str) -> None:
    svg = (ROOT / "docs" / "systems" / f"{name}.svg").read_text(encoding="utf-8")
    s = RECIPES[name].settings_type()
    if not RECIPES[name].paired:
        words = {f"{s.cycle:g} × L1", f"{s.identity:g} × L1", f"of {s.pool}"}
    elif name == "pix2pix":
        words = {f"{s.l1:g} × L1"}
    else:
        words = {
            f"{s.reconstruction:g} × {1 - s.inside:g} × mean",
            f"{s.reconstruction:g} × {s.inside:g} × mean in mask",
        }
    if hasattr(s, "perceptual"):
        words.add(f"{s.perceptual:g} × mean square")
    assert not {word for word in words if f">{word}</text>" not in svg}


@pytest.mark.parametrize("name", SYSTEMS)
def test_results_are_complete(name: str) -> None:
    told = PAGE.split(f"<!-- measured:{name}:begin -->")[1].split(f"<!-- measured:{name}:end -->")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines() if line[:1] == "|"]
    assert len(cells) > 6
    assert all(cell for row in cells for cell in row), f"{name}: an empty cell"
    first = next(row for row in cells if row[0] in ("sots_outdoor", "rain100/light"))
    assert float(first[2]) > float(first[3]), f"{name} leaves its own test no better than it came"
    assert "**Observed.**" in told
