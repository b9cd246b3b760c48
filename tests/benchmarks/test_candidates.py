"""The candidates' benchmark: its changes to a run file, and from training to its tables at a size of a step or two."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

import candidates
import cv2
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from variants import ABLATIONS, CANDIDATES, REAL, Variant, changed, toml

from fairweather import cli
from fairweather.errors import BadSettings
from fairweather.generators import GENERATORS
from fairweather.training.config import complete_config, read_toml

TINY = """
[run]
steps = 9
batch = 2
precision = "fp32"
[recipe]
name = "supervised"
lr = 1e-3
discriminator_warmup = 3
[generator]
name = "conv_unet"
widths = [4, 8]
encoder = [1, 1]
decoder = [1]
[data]
weather = "haze"
hold_back = 0.4
samples = 8
[data.augment]
crop = 64
scale = [0.9, 1.0]
[[data.sources]]
kind = "pairs"
path = "sots_outdoor"
[[data.sources]]
kind = "pairs"
path = "o_haze"
[[data.sources]]
kind = "synthetic"
path = "clear"
haze = { clear = 0.1 }
[[data.sources]]
kind = "clear"
path = "clear"
"""


@pytest.fixture
def photos(tmp_path: Path, photo: np.ndarray) -> Path:
    """train/ and test/ with three pairs a set, the degraded one paler, and three clear photos."""
    sets = [f"{place}/{side}" for place in ("train/sots_outdoor", "train/o_haze", "test/i_haze")
            for side in ("hazy", "clear")]  # fmt: skip
    for place in [*sets, "train/clear"]:
        (tmp_path / place).mkdir(parents=True)
        for at in range(3):
            shown = np.roll(photo, 9 * at, axis=1)
            pale = shown // 2 + 100 if place.endswith("hazy") else shown
            cv2.imwrite(str(tmp_path / place / f"{place.split('/')[1]}-{at}.png"), pale)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def tables() -> Any:
    return tomllib.loads(TINY)


def without_lengths(table: Any) -> Any:
    table["run"].pop("steps", None)
    return table


@pytest.mark.parametrize("name", CANDIDATES | ABLATIONS)
def test_every_change_to_the_file_of_what_ships_is_a_run(name: str) -> None:
    """And changes it: but for the candidate that is the file itself."""
    file = read_toml(candidates.CONFIG)
    variant = (CANDIDATES | ABLATIONS)[name]
    made = tomllib.loads(toml(changed(file, variant)))
    complete_config(made, {})
    assert (made == file) == (name == "scattering_maps")
    assert file == read_toml(candidates.CONFIG), "the file's own tables stay"


def test_changes_are_the_ones_that_are_stated() -> None:
    file = read_toml(candidates.CONFIG)
    every = file["data"]["sources"]

    def gone(name: str) -> list[Any]:
        kept = [(one["kind"], one["path"], one.get("fog")) for one in changed(file, ABLATIONS[name])["data"]["sources"]]
        return [one for one in every if (one["kind"], one["path"], one.get("fog")) not in kept]

    assert {one["path"] for one in gone("no-real-haze") if one["kind"] == "pairs"} == {"o_haze", "nh_haze"}
    assert all(one["path"] in REAL or one["fog"] in REAL for one in gone("no-real-haze"))
    assert [(one["kind"], one["path"]) for one in gone("no-invented-depth")] == [("synthetic", "clear")]
    assert [(one["kind"], one["path"]) for one in gone("no-clear-pairs")] == [("clear", "clear")]
    left = changed(file, ABLATIONS["no-clear-pairs"])["data"]["sources"]
    assert not any(one.get("haze", {}).get("clear", 0) for one in left)
    bare = changed(file, ABLATIONS["no-tone-no-noise"])["data"]
    assert not any(one.get(key, 0) for one in [bare["augment"], *(s.get("augment", {}) for s in bare["sources"])]
                   for key in ("tone", "noise_share", "jpeg_share"))  # fmt: skip
    second = changed(file, ABLATIONS["adversarial"])
    assert second["recipe"]["adversarial"] > 0
    assert second["recipe"]["lr"] == changed(file, ABLATIONS["goes-on"])["recipe"]["lr"] < file["recipe"]["lr"]


def test_what_a_source_says_for_itself_is_changed_too() -> None:
    file = tables()
    file["data"]["sources"][0]["augment"] = {"tone": 0.4, "gamma": [0.7, 1.2]}
    file["data"]["sources"][2]["fog"] = "o_haze"
    (first, *_) = changed(file, ABLATIONS["no-tone-no-noise"])["data"]["sources"]
    assert first["augment"] == {"tone": 0.0, "noise_share": 0.0, "jpeg_share": 0.0, "gamma": [0.7, 1.2]}
    assert [one["kind"] for one in changed(file, ABLATIONS["no-real-haze"])["data"]["sources"]] == ["pairs", "clear"]
    with pytest.raises(BadSettings, match="4 of the run file's 4 sources"):
        changed(file, ABLATIONS["no-invented-depth"])  # this one's depth is not invented


def test_a_change_that_changes_nothing_is_told() -> None:
    file = tables()
    file["data"]["sources"] = file["data"]["sources"][:1]
    with pytest.raises(BadSettings, match="1 of the run file's 1 sources"):
        changed(file, ABLATIONS["no-real-haze"])
    with pytest.raises(BadSettings, match="0 of the run file's 1 sources"):
        changed(file, Variant("all gone", without=lambda source: True))


def test_tables_survive_the_file() -> None:
    given = tables()
    given["data"] |= {"terms": 'ten "quotes"\nand ∀', "description": ""}
    assert tomllib.loads(toml(given)) == given


def test_candidates_cost_about_the_same() -> None:
    """Multiplications at training size: no candidate takes twice what another does."""
    found = {}
    for name, variant in CANDIDATES.items():
        table = dict(variant.generator or read_toml(candidates.CONFIG)["generator"])
        network = GENERATORS[table.pop("name")](**table).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.rand(1, 3, 256, 256))
        found[name] = counter.get_total_flops()
    assert max(found.values()) < 2 * min(found.values()), found


def options(photos: Path, *words: str) -> argparse.Namespace:
    return candidates.parser().parse_args(["--data", str(photos), "--out", str(photos / "out"), *words])


def test_the_budget_is_steps_of_measured_time(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []
    monkeypatch.setattr(candidates, "run_training", lambda words, path, **environment: said.append(words))
    given = options(photos, "--minutes", "2")
    given.out.mkdir()
    (given.out / "scattering_maps.pace").write_text("0.5\n")
    (given.out / "goes-on.pace").write_text("0.25\n")
    candidates.train("scattering_maps", tables(), CANDIDATES["scattering_maps"], given)
    candidates.train("goes-on", tables(), ABLATIONS["goes-on"], given, given.out / "scattering_maps")
    made = [read_toml(given.out / f"{name}.toml")["run"] for name in ("scattering_maps", "goes-on")]
    assert [run["steps"] for run in made] == [240, 120]
    assert made[1]["start"] == str(given.out / "scattering_maps")
    assert "start" not in made[0]
    assert "--resume" not in said[0]

    (given.out / "scattering_maps").mkdir()
    (given.out / "scattering_maps" / "run.json").write_text("{}")
    candidates.train("scattering_maps", tables(), CANDIDATES["scattering_maps"], given)
    assert said[-1] == [*said[0], "--resume"]
    given.minutes = 3.0
    with pytest.raises(RuntimeError, match="other settings"):
        candidates.train("scattering_maps", tables(), CANDIDATES["scattering_maps"], given)


def test_a_step_is_timed_without_what_is_done_once(photos: Path) -> None:
    found = candidates.step_time(photos / "tiny.toml", photos / "train", 1)
    assert 1e-3 < found < 5


def test_a_run_file_that_holds_nothing_back_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "all.toml").write_text(TINY.replace("hold_back = 0.4", "hold_back = 0.0"))
    words = ["--data", str(photos), "--out", str(photos / "out"), "--config", str(photos / "all.toml")]
    assert candidates.main(words) == 1
    assert "hold_back" in capsys.readouterr().err


def test_it_trains_scores_and_prints(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One candidate in two steps, and the two that go on from it; a second call measures and trains nothing."""
    monkeypatch.setattr(candidates, "pace", lambda name, tables, options: 1.0)

    def here(words: list[str], path: Path, **environment: str) -> None:
        """The same words, without the seconds that a new process needs to import everything."""
        assert words[1:3] == ["-m", "fairweather"]
        assert cli.main(words[3:]) == 0
        path.with_suffix(".seconds").write_text("60.0\n")

    monkeypatch.setattr(candidates, "run_training", here)
    words = ["--data", str(photos), "--out", str(photos / "out"), "--config", str(photos / "tiny.toml"), "--jobs", "1"]
    words += ["--ablate", "scattering_maps", "--minutes", str(2 / 60), "--only", "goes-on"]
    assert candidates.main(words) == 0
    said = capsys.readouterr().out
    said = said[said.index("Budget") :]  # before it is what the trainings say
    blocks = [[line for line in part.splitlines() if line[:2] == "| "] for part in said.split("\n\n")]
    costs, held, glow, test = (rows for rows in blocks if rows)
    assert [row.split(" | ")[0] for row in costs] == ["| variant", "| scattering_maps", "| goes-on"]
    assert [row.split(" | ")[6] for row in costs] == ["steps", "2", "1"]
    assert held[0] == "| variant | sots_outdoor (1) | o_haze (1) | clear (clear) (1) |"
    assert [row.split(" | ")[0] for row in held[1:]] == ["| the input", "| scattering_maps", "| goes-on"]
    assert "inf / inf" in held[1]
    assert glow[0] == "| variant | sots_outdoor (1) | o_haze (1) |"
    assert test[0] == "| variant | i_haze (3) |"
    assert said.index("not used for any choice") < said.index("i_haze")
    record = json.loads((photos / "out" / "goes-on" / "run.json").read_text())
    assert record["settings"]["run"]["start"] == str((photos / "out" / "scattering_maps").resolve())

    for once in ("run_training", "on_pairs", "on_clear"):
        monkeypatch.setattr(candidates, once, None)
    assert candidates.main(words) == 0
    assert capsys.readouterr().out == said
