"""Interrupted runs: resumed, they end with the same weights as uninterrupted ones, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairweather.errors import BadFolder, BadSettings
from fairweather.training import Run, checkpoint, loop
from fairweather.training.optimization import TrainingEngine
from tests.training import killed
from tests.training.several import forked
from tests.training.toy import SMALL, Toy, assert_same_state, no_export, small_run


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)


def final(folder: Path) -> dict[str, Any]:
    return checkpoint.load_checkpoint(folder / "checkpoints")


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """SIGKILL in step 6 of 8, the last checkpoint after step 3: pix2pix (dropout, batch norm) and cyclegan (pool)."""
    recipes = ("pix2pix", "cyclegan")
    context = forked()
    children = [
        context.Process(target=killed.main, args=(recipe, str(tmp_path / f"{recipe}-killed"), "6"))
        for recipe in recipes
    ]
    for child in children:
        child.start()
    whole = {recipe: small_run(recipe, tmp_path / recipe) for recipe in recipes}
    for child in children:
        child.join(timeout=240)
    assert [child.exitcode for child in children] == [-signal.SIGKILL, -signal.SIGKILL]
    for recipe in recipes:
        part = tmp_path / f"{recipe}-killed"
        assert final(part)["step"] == 3
        torch.rand(7)  # whatever this process has drawn in between must not matter
        resumed = small_run(recipe, part, resume=True)
        assert_same_state(final(whole[recipe].folder), final(part))
        assert [line["step"] for line in resumed.stats()] == list(range(1, 9))
        assert terms(resumed) == terms(whole[recipe])
    pools = final(whole["cyclegan"].folder)["engine"]["histories"]
    assert {name: len(pool["photos"]) for name, pool in pools.items()} == {"clear": 2, "degraded": 2}


def terms(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in run.stats()]


@pytest.mark.parametrize("recipe", ["claritygan", "derain", "hazeheal"])
def test_the_other_recipes_go_on_exactly_too(recipe: str, tmp_path: Path) -> None:
    """Spectral norms, U-Nets in a cycle, and VGG-19, of which the checkpoint holds a fingerprint alone."""
    whole = small_run(recipe, tmp_path / "whole", steps=4)
    interrupt_at(2, recipe, tmp_path / "part", steps=4)
    resumed = small_run(recipe, tmp_path / "part", steps=4, resume=True)
    assert_same_state(final(whole.folder), final(resumed.folder))
    assert terms(resumed) == terms(whole)
    if recipe != "derain":
        kept = [name for name in final(resumed.folder)["engine"]["recipe"] if name.startswith("compare")]
        assert kept == ["compare._extra_state"]


@pytest.mark.parametrize(
    "forgotten", ["random", "histories", "history_generator", "optimizers", "ema", "discriminators"]
)
def test_everything_in_the_state_is_needed(tmp_path: Path, forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: without any part of the state, a resumed run ends with other weights."""
    recipe = {"random": "pix2pix", "optimizers": "supervised", "ema": "supervised"}.get(forgotten, "cyclegan")
    whole = small_run(recipe, tmp_path / "whole")
    interrupt_at(5, recipe, tmp_path / "part")
    saved, fresh = final(tmp_path / "part"), final(tmp_path / "part")
    small = small_run(recipe, tmp_path / "fresh", steps=1)
    blank = final(small.folder)
    if forgotten == "random":
        fresh["random"] = blank["random"]
    elif forgotten == "histories":
        fresh["engine"]["histories"] = {}
    elif forgotten == "discriminators":
        networks = fresh["engine"]["recipe"]
        networks |= {
            name: value for name, value in blank["engine"]["recipe"].items() if name.startswith("discriminator")
        }
    else:
        fresh["engine"][forgotten] = blank["engine"][forgotten]
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda _: fresh)
    small_run(recipe, tmp_path / "part", resume=True)
    monkeypatch.undo()
    assert saved["step"] == 5
    with pytest.raises(AssertionError, match="differs"):
        assert_same_state(final(whole.folder), final(tmp_path / "part"))


def interrupt_at(step: int, recipe: str, out: Path, **options: Any) -> None:
    """Ctrl-C while step number `step` prepares its batch."""
    seen = 0

    def on_sample(epoch: int, index: int) -> None:
        nonlocal seen
        seen += 1
        batch = options.get("batch", SMALL[recipe].get("batch", 1))
        if seen == (step - 1) * batch + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        small_run(recipe, out, data=Toy(on_sample=on_sample), **options)


def test_ctrl_c_saves_and_resuming_is_exact(tmp_path: Path) -> None:
    whole = small_run("supervised", tmp_path / "whole")
    interrupt_at(5, "supervised", tmp_path / "part")
    assert final(tmp_path / "part")["step"] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # another cadence is the one thing that may differ; what was said once need not be said again
    small_run("supervised", tmp_path / "part", resume=True, checkpoint_steps=1)
    assert_same_state(final(whole.folder), final(tmp_path / "part"))


def test_a_damaged_newest_checkpoint_leaves_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = small_run("supervised", tmp_path / "whole")
    part = tmp_path / "part"
    interrupt_at(6, "supervised", part, checkpoint_steps=4)
    path = part / "checkpoints" / "latest.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    resumed = small_run("supervised", part, resume=True)
    assert any("latest.pt is damaged" in words and "after step 4" in words for words in caplog.messages)
    assert_same_state(final(whole.folder), final(part))
    assert terms(resumed) == terms(whole)
    assert [without_times(line) for line in resumed.epochs()] == [without_times(line) for line in whole.epochs()]


def without_times(epoch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in epoch.items() if key not in ("time", "seconds", "photos_per_second")}


def test_looking_does_not_touch_the_training(tmp_path: Path) -> None:
    plain = small_run("pix2pix", tmp_path / "plain", steps=3)
    looked = small_run("pix2pix", tmp_path / "looked", steps=3, sample_steps=1, checkpoint_steps=1)
    assert_same_state(final(plain.folder), final(looked.folder))
    assert len(list((looked.folder / "samples").iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "run.seed"),
        ({"batch": 3}, "run.batch"),
        ({"crop": 64}, "data.crop"),
        ({"settings": {"lr": 1e-4}}, "recipe.lr"),
        ({"generator_arguments": {"width": 8}}, "generator.width"),
        ({"steps": 9}, "run.steps"),
        ({"minutes": 1.0, "steps": None}, "run.steps|run.minutes"),
        ({"precision": "bf16"}, "run.precision"),
    ],
)
def test_resume_refuses_other_settings(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    small_run("supervised", tmp_path, steps=1)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(BadSettings, match=named):
        small_run("supervised", tmp_path, **{"steps": 1, **change}, resume=True)
    assert (tmp_path / "run.json").read_bytes() == before


def test_auto_goes_on_with_what_it_came_to(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[run]\nprecision = "auto"\ndevice = "auto"\n', encoding="utf-8")
    small_run("supervised", tmp_path / "run", steps=1)
    small_run("supervised", tmp_path / "run", steps=1, config=config, precision=None, device=None, resume=True)
    small_run("supervised", tmp_path / "run", steps=1, precision="auto", device="auto", resume=True)


def test_resume_refuses_another_recipe(tmp_path: Path) -> None:
    small_run("supervised", tmp_path, steps=1)
    with pytest.raises(BadSettings, match="recipe is 'pix2pix', but"):
        small_run("pix2pix", tmp_path, steps=1, resume=True)


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    small_run("supervised", tmp_path, steps=1)
    with pytest.raises(BadFolder, match="--resume"):
        small_run("supervised", tmp_path, steps=1)


def test_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match=r"run\.json"):
        small_run("supervised", tmp_path / "nothing", resume=True)


# A run by the clock: its length and learning rates count the time of training alone.

MINUTES = 14 / 60
"""Seven steps of two photos, each of which takes a second by this clock."""


class StoppedClock:
    """A clock that advances by a second per sample, and between two parts of a run."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.photos = 0
        self.rates: list[tuple[float, float]] = []

    def part(self, out: Path, *, stop_after: int | None = None, **options: Any) -> Callable[[], None]:
        def on_sample(epoch: int, index: int) -> None:
            self.now += 1
            self.photos += 1
            if self.photos == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

        return lambda: small_run(
            "supervised", out, data=Toy(on_sample=on_sample), steps=None, minutes=MINUTES, **options
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    made = StoppedClock()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: made.now))
    step = TrainingEngine.step

    def watched(self: TrainingEngine, batch: Any, progress: float) -> Any:
        terms = step(self, batch, progress)
        made.rates.append((progress, self.optimizers["generator"].param_groups[0]["lr"]))
        return terms

    monkeypatch.setattr(TrainingEngine, "step", watched)
    return made


def test_three_parts_are_one_run_by_the_clock(clock: StoppedClock, tmp_path: Path) -> None:
    clock.part(tmp_path / "whole")()
    whole, clock.rates = clock.rates, []
    assert [round(progress, 6) for progress, _ in whole] == [round(step / 7, 6) for step in range(7)]
    assert len({rate for _, rate in whole}) == 7
    for stop, resume in ((4, False), (4, True)):
        clock.photos = 0
        with pytest.raises(KeyboardInterrupt):
            clock.part(tmp_path / "part", stop_after=stop, resume=resume)()
        clock.now += 3600  # the machine did something else
    assert checkpoint.load_checkpoint(tmp_path / "part" / "checkpoints")["seconds"] == 8
    clock.part(tmp_path / "part", resume=True)()
    assert clock.rates == whole
    ends = [checkpoint.load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "part")]
    assert_same_state(*ends)
    assert [end["seconds"] for end in ends] == [14, 14]


def test_steps_lost_in_a_crash_are_taken_again(clock: StoppedClock, tmp_path: Path) -> None:
    """Interrupted after four steps, the last checkpoint after two: the time of the lost steps does not count."""
    clock.part(tmp_path / "whole")()
    clock.photos = 0
    with pytest.raises(KeyboardInterrupt):
        clock.part(tmp_path / "part", stop_after=8, checkpoint_steps=2)()
    path = tmp_path / "part" / "checkpoints"
    path.joinpath("previous.pt").replace(path / "latest.pt")
    assert checkpoint.load_checkpoint(path)["seconds"] < 8
    clock.part(tmp_path / "part", resume=True)()
    assert_same_state(*(checkpoint.load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "part")))
