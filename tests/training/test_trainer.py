"""`fairweather.train` from start to end."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fairweather.errors import BadFolder, BadSettings, MissingExtra
from fairweather.images.io import write
from fairweather.training import allocator, checkpoint, export_run, trainer
from fairweather.training.run_log import read_stats
from tests.training.toy import SMALL, Toy, no_export, small_run


@pytest.mark.parametrize("recipe", sorted(SMALL))
def test_every_recipe_lowers_its_loss_and_fills_its_folder(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_export(monkeypatch)
    settings = {**SMALL[recipe]["settings"], "lr": 5e-3}
    run = small_run(recipe, tmp_path / "run", steps=40, settings=settings, sample_steps=20)
    stats = run.stats()
    assert [line["step"] for line in stats] == list(range(1, 41))
    assert all(math.isfinite(value) for line in stats for value in line.values())
    assert all(a["time"] <= b["time"] for a, b in pairwise(stats))
    terms = {"supervised": "charbonnier", "hazeheal": "charbonnier", "pix2pix": "l1"}
    term = terms.get(recipe, "cycle_degraded")
    first, last = (np.mean([line[term] for line in part]) for part in (stats[:8], stats[-8:]))
    assert last < 0.9 * first
    assert sorted(path.name for path in run.folder.iterdir()) == [
        *("checkpoints", "epochs.jsonl", "run.json", "samples", "stats.jsonl")
    ]
    sheets = sorted(path.name for path in (run.folder / "samples").iterdir())
    assert sheets == ["step-0000020.jpg", "step-0000040.jpg"]
    record = run.settings()
    assert record["settings"]["run"]["seed"] == 0
    assert record["settings"]["recipe"]["name"] == recipe
    assert record["versions"]["torch"] == torch.__version__


def test_a_run_ends_with_a_model_that_restores(tmp_path: Path) -> None:
    run = small_run("supervised", tmp_path / "run", steps=2)
    card = json.loads((run.model / "card.json").read_text())
    assert card["generator"] == "unet"
    assert card["training"]["steps"] == 2
    assert card["training"]["recipe"] == "supervised"
    assert str(tmp_path) not in json.dumps(card)
    photo = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    restored = run.restorer(engine="onnxruntime")(photo)
    assert restored.shape == photo.shape
    assert restored.dtype == np.uint8
    # what ships is the average, not the last weights
    engine = checkpoint.load_checkpoint(run.folder / "checkpoints")["engine"]
    from fairweather.model_folder import read_weights

    weights = read_weights(run.model)
    name = next(name for name in weights if name.endswith("weight"))
    assert np.array_equal(weights[name], engine["ema"]["weights"][name].numpy())
    assert not np.array_equal(weights[name], engine["recipe"][f"restore.{name}"].numpy())


def test_nan_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)

    class Poisoned(Toy):
        def sample(self, seed: int, epoch: int, index: int) -> dict[str, Tensor]:
            sample = super().sample(seed, epoch, index)
            return {**sample, "clear": sample["clear"] * (math.nan if (epoch, index) == (1, 3) else 1)}

    with pytest.raises(BadSettings, match="loss of generator is nan in step 5"):
        small_run("supervised", tmp_path, data=Poisoned(), checkpoint_steps=2)
    saved = checkpoint.load_checkpoint(tmp_path / "checkpoints")
    assert saved["step"] == 4
    assert all(torch.isfinite(weight).all() for weight in saved["engine"]["recipe"].values())
    assert [line["step"] for line in read_stats(tmp_path / "stats.jsonl")] == [1, 2, 3, 4]


def test_the_clock_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)
    run = small_run("supervised", tmp_path, steps=None, minutes=0.01)
    assert run.stats()[-1]["time"] >= 0.6
    assert all(line["time"] < 0.6 for line in run.stats()[:-1])


def test_epochs_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)
    assert len(small_run("supervised", tmp_path, steps=None, epochs=2).stats()) == 5  # 2 x 5 samples in twos


def test_the_holdout_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: np.ndarray) -> None:
    no_export(monkeypatch)
    for side, light in (("hazy", 0.5), ("clear", 1.0)):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for scene in range(4):
            shown = (photo.astype(np.float32) * light + 127 * (1 - light) + scene).clip(0, 255).astype(np.uint8)
            write(tmp_path / "pairs" / side / f"{scene}.png", shown)
    run = small_run(
        "supervised", tmp_path / "run", data=tmp_path / "pairs", hold_back=0.25, steps=3, validate_steps=2, workers=1
    )
    measured = [line.get("validation") for line in run.stats()]
    assert measured[0] is None
    assert measured[1] is not None
    assert 5 < measured[2] < 60
    assert "validation/pairs" in run.stats()[2]
    assert run.settings()["settings"]["data"]["folder"] == str((tmp_path / "pairs").resolve())


@pytest.mark.parametrize("recipe", ["cyclegan", "pix2pix"])
def test_real_folders(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    no_export(monkeypatch)
    rain = shared_data / "test" / "rain100"
    paired = {"data": shared_data / "test" / "i_haze"}
    photos = paired if recipe == "pix2pix" else {"data": None, "degraded": rain / "light", "clear": rain / "clear"}
    settings = {**SMALL[recipe]["settings"], "lr": 3e-3}
    run = small_run(recipe, tmp_path, steps=40, settings=settings, **photos)
    term = {"pix2pix": "l1", "cyclegan": "identity_clear"}[recipe]
    first, last = (np.mean([line[term] for line in part]) for part in (run.stats()[:10], run.stats()[-10:]))
    assert last < first


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("supervised", {"data": None, "degraded": "a", "clear": "b"}, "pairs"),
        ("cyclegan", {"data": None, "degraded": "a"}, "--degraded and --clear"),
        ("cyclegan", {"data": None, "degraded": "a", "clear": "b", "hold_back": 0.1}, "hold_back"),
        ("supervised", {"data": "a", "depths": "b"}, "data.depths is for mixtures"),
        ("supervised", {"crop": 30}, "multiple of 4: use 32"),
        ("supervised", {"precision": "fp16"}, "fp16"),
        ("supervised", {"settings": {"learning_rate": 1.0}}, "learning_rate"),
    ],
)
def test_what_is_refused_before_any_work(recipe: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=words):
        small_run(recipe, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_unpaired_recipes_refuse_a_mixture_of_pairs(tmp_path: Path) -> None:
    config = tmp_path / "mixture.toml"
    config.write_text('[[data.sources]]\nkind = "clear"\npath = "clear"\n', encoding="utf-8")
    with pytest.raises(BadSettings, match="independently"):
        small_run("cyclegan", tmp_path / "run", data=str(tmp_path), config=config)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadFolder, match="--out"):
        small_run("supervised", tmp_path / "run")


def test_a_file_where_the_run_should_go(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(BadFolder, match="run"):
        small_run("supervised", tmp_path / "run")


def test_what_the_export_needs_is_missed_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "find_spec", lambda module: None if module == "openvino" else object())
    with pytest.raises(MissingExtra, match="pip install openvino"):
        small_run("supervised", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_machine_without_openvino_compares_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairweather.deploy import parity

    compared: list[list[str]] = []
    real = parity.check_parity
    monkeypatch.setattr(
        parity,
        "check_parity",
        lambda *a, engines, **k: (compared.append(list(engines)), real(*a, engines=engines, **k)),
    )
    found = trainer.find_spec
    for module in (trainer, export_run):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == "openvino" else found(name))
    run = small_run("supervised", tmp_path / "run", steps=2, parity="installed")
    assert compared == [["onnxruntime", "torch"]]
    assert (run.model / "card.json").is_file()


def test_restarting_keeps_the_command_and_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(allocator.os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(allocator.sys, "orig_argv", ["python", "-m", "fairweather", "train", "x"])
    for key in (*allocator.MALLOC, "LD_PRELOAD", "FAIRWEATHER_MALLOC"):
        monkeypatch.delenv(key, raising=False)
    allocator.restart_tuned()
    assert calls[0][1][1:] == ["-m", "fairweather", "train", "x"]
    assert calls[0][2].items() >= allocator.MALLOC.items()
    for key, value in calls[0][2].items():
        monkeypatch.setenv(key, value)
    allocator.restart_tuned()
    assert len(calls) == 1
