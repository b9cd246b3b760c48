"""A line an epoch with every term, sheets by epochs; both know of epochs that end within a step, or several in one."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from fairweather import cli, images
from fairweather.commands import train
from fairweather.training.run_log import EpochMeter, epoch_due, read_stats, truncate_stats
from tests.training.toy import no_export, small_run


def test_an_epoch_is_the_mean_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_export(monkeypatch)
    with caplog.at_level(logging.INFO, logger="fairweather"):
        run = small_run("pix2pix", tmp_path / "run", steps=8)
    # Five samples in twos: the third step ends the first epoch, the fifth the second, the eighth the third.
    assert [(line["epoch"], line["step"]) for line in run.epochs()] == [(1, 3), (2, 5), (3, 8)]
    stats = run.stats()
    second = run.epochs()[1]
    for name in ("adversarial", "l1", "discriminator"):
        assert second[name] == pytest.approx(np.mean([line[name] for line in stats[3:5]]))
    assert second["seconds"] == pytest.approx(stats[4]["time"] - stats[2]["time"], abs=1e-3)
    assert second["photos_per_second"] == pytest.approx(4 / second["seconds"], rel=0.01)
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1 (step 3)", "epoch 2 (step 5)", "epoch 3 (step 8)"]
    assert all(word in lines[1] for word in ("adversarial", "l1", "discriminator", " s, ", "photos/s"))


def test_tensorboard_has_the_epochs_under_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    no_export(monkeypatch)
    run = small_run("supervised", tmp_path, steps=5, tensorboard=True)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    for name in run.epochs()[0].keys() - {"epoch", "step", "time", "seconds"}:
        assert [event.step for event in board.Scalars(f"epoch/{name}")] == [3, 5]


def test_sheets_by_epochs_show_the_same_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)
    settings = {"ema": 0.0, "lr": 0.05}  # visible after a few steps
    run = small_run("supervised", tmp_path, steps=13, sample_epochs=2, settings=settings)
    names = sorted(path.name for path in (run.folder / "samples").iterdir())
    assert names == ["epoch-00002.jpg", "epoch-00004.jpg"]
    sheets = [images.read(run.folder / "samples" / name).pixels.astype(int) for name in names]
    degraded, restored, clear = (
        abs(sheets[0][:, 32 * at : 32 * at + 32] - sheets[1][:, 32 * at : 32 * at + 32]).mean() for at in range(3)
    )
    assert max(degraded, clear) < 2  # what JPEG makes of the seam
    assert restored > 4


def test_several_epochs_may_end_in_one_step() -> None:
    assert [epoch_due(step, length=5, batch=2, every=2) for step in range(1, 11)] == [
        step in (5, 10) for step in range(1, 11)
    ]
    assert not any(epoch_due(step, length=5, batch=2, every=0) for step in range(1, 11))
    assert [epoch_due(step, length=2, batch=7, every=5) for step in (1, 2, 3)] == [False, True, True]
    epochs = EpochMeter(length=2, batch=7)
    lines = [epochs.add({"step": step, "time": float(step), "loss": step}) for step in (1, 2)]
    assert [line and (line["epoch"], line["loss"], line["photos_per_second"]) for line in lines] == [
        (3, 1, 7),
        (7, 2, 7),
    ]


def test_log_lines_go_where_stderr_is_now(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """While its bar is drawn, rich puts a stand-in on sys.stderr, which prints above the bar."""
    from rich.console import Console
    from rich.progress import Progress

    written: list[str] = []

    def run() -> int:
        console = Console(file=sys.stderr, force_terminal=True, width=60)
        with Progress(console=console, auto_refresh=False) as bar:
            written.append(type(sys.stderr).__name__)
            bar.add_task("steps", total=2)
            logging.getLogger("fairweather").info("epoch 1")
            bar.refresh()
        return 0

    monkeypatch.setattr(train, "parse", lambda *_: run)
    assert cli.main(["train"]) == 0
    assert written == ["FileProxy"]
    printed = capsys.readouterr().err
    assert printed.index("fairweather: epoch 1") < printed.rindex("steps")


def test_a_missing_tensorboard_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    no_export(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.INFO, logger="fairweather"):
        small_run("supervised", tmp_path, steps=1, tensorboard=True)
    assert sum("tensorboard is not installed" in record.getMessage() for record in caplog.records) == 1


def test_stats_survive_a_line_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    path.write_text('{"step": 1, "a": 1.5}\n{"step": 2, "a": 1.25}\n{"step": 3, "a"')
    assert [line["step"] for line in read_stats(path)] == [1, 2]
    truncate_stats(path, 1)
    assert path.read_text() == '{"step": 1, "a": 1.5}\n'


def test_tensorboard_has_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    no_export(monkeypatch)
    run = small_run("supervised", tmp_path, steps=3, tensorboard=True)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    line = run.stats()[1]
    for name in line.keys() - {"step", "time"}:
        scalars = board.Scalars(name)
        assert [event.step for event in scalars] == [1, 2, 3]
        assert scalars[1].value == pytest.approx(line[name])


def test_the_log_has_every_term_and_the_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_export(monkeypatch)
    with caplog.at_level(logging.INFO, logger="fairweather"):
        small_run("supervised", tmp_path, steps=4, log_steps=2)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert [line.split(",")[0] for line in lines] == ["step 2", "step 4"]
    assert all(word in lines[1] for word in ("charbonnier", "ssim", "frequency", "photos/s"))
