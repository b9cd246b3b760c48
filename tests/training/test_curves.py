"""Loss curves: what is read from stats.jsonl, and what of it stands in the picture."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from fairweather.errors import BadFolder, BadSettings
from fairweather.images.io import read
from fairweather.training import curves
from fairweather.training.curves import draw_curves, read_curves, smoothed, thinned


def run(folder: Path, steps: int, *, validate: int = 0, cut: str = "", **terms: float) -> Path:
    """A run folder whose terms fall as 1/step from what is given."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        line: dict[str, Any] = {"step": step, "time": 0.5 * step, **{k: v / step for k, v in terms.items()}}
        if validate and step % validate == 0:
            line |= {"validation/one": 20 + step, "validation/two": 30.0 + step, "validation": 25.0 + step}
        lines.append(json.dumps(line) + "\n")
    (folder / "stats.jsonl").write_text("".join(lines) + cut)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, to be looked into."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **settings: Any) -> None:
        figures.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def titles(figure: Figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_what_a_killed_run_has_told(tmp_path: Path) -> None:
    folder = run(tmp_path / "killed", 7, validate=3, l1=4.0, cut='{"step": 8, "ti')
    (folder / "run.json").write_text('{"settings": {"recipe": {"name": "pix2pix"}, "generator": {"name": "unet"}}}')
    told = read_curves(folder)
    assert (told.folder.name, told.about, told.steps, told.minutes) == ("killed", "pix2pix, unet", 7, 3.5 / 60)
    assert list(told.terms) == ["l1", "validation/one", "validation/two", "validation"]
    steps, values = told.terms["l1"]
    assert steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert values == pytest.approx(4 / steps)
    assert told.terms["validation"][0].tolist() == [3, 6]


def test_values_that_are_no_numbers_leave_a_gap(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 2, l1=1.0)
    with open(folder / "stats.jsonl", "a") as file:
        file.write('{"step": 3, "time": 2, "l1": NaN, "note": "x"}\n{"step": 4, "time": 2, "l1": 0.5}\n')
    assert read_curves(folder).terms["l1"][0].tolist() == [1, 2, 4]
    assert list(read_curves(folder).terms) == ["l1"]
    (folder / "stats.jsonl").write_text('{"step": 1, "time": NaN, "l1": NaN}\n{"step": 2, "l1": Infinity}\n')
    with pytest.raises(BadFolder, match=r"stats\.jsonl has nothing to plot"):
        read_curves(folder)


@pytest.mark.parametrize("line", ["[]", "3", '{"step": "x"}', '{"step": 2, "l1": ' + "9" * 5000 + "}", "[" * 100_000])
def test_lines_that_are_no_steps_end_the_curves(tmp_path: Path, line: str) -> None:
    folder = run(tmp_path / "run", 1, l1=1.0)
    with open(folder / "stats.jsonl", "a") as file:
        file.write(line + "\n" + '{"step": 3, "l1": 0.5}\n')
    assert read_curves(folder).terms["l1"][0].tolist() == [1]


def test_a_folder_without_curves_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match=r"stats\.jsonl.*give a run folder"):
        read_curves(tmp_path)
    (tmp_path / "stats.jsonl").write_text('{"step": 1')
    with pytest.raises(BadFolder, match=r"has no steps yet: wait"):
        read_curves(tmp_path)


def test_a_panel_for_each_term_and_one_for_validation(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = run(tmp_path / "run", 200, validate=50, l1=3.0, adversarial=1.0, discriminator=2.0)
    path = draw_curves([read_curves(folder)], tmp_path / "losses.png")
    assert min(read(path).pixels.shape[:2]) > 400
    (figure,) = drawn
    assert titles(figure) == ["l1", "adversarial", "discriminator", "validation, PSNR in dB"]
    faint, bold = figure.axes[0].lines
    assert faint.get_alpha() < 0.5 < bold.get_linewidth()
    assert np.ptp(bold.get_ydata()) < np.ptp(faint.get_ydata())
    validation = {line.get_label(): line for line in figure.axes[3].lines}
    assert set(validation) == {"one", "two", "mean"}
    assert all(line.get_marker() not in ("None", None, "") for line in validation.values())
    assert validation["mean"].get_ydata().tolist() == [75, 125, 175, 225]


def test_a_run_of_one_step_is_a_point(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_curves([read_curves(run(tmp_path / "run", 1, l1=3.0))], tmp_path / "losses.svg")
    assert (tmp_path / "losses.svg").read_text().startswith("<?xml")
    (line,) = drawn[0].axes[0].lines
    assert (line.get_marker(), line.get_ydata().tolist()) == ("o", [3.0])


def test_a_folder_s_name_is_no_formula(tmp_path: Path, drawn: list[Figure]) -> None:
    odd = read_curves(run(tmp_path / r"a$\frac$", 2, l1=3.0))
    draw_curves([odd], tmp_path / "one.png")
    draw_curves([odd, read_curves(run(tmp_path / "b", 2, l1=3.0))], tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > 1000


def test_runs_over_each_other(tmp_path: Path, drawn: list[Figure]) -> None:
    first = run(tmp_path / "a" / "run", 100, l1=3.0, adversarial=1.0)
    second = run(tmp_path / "b" / "run", 60, validate=20, l1=2.0)
    draw_curves([read_curves(first), read_curves(second)], tmp_path / "both.png")
    (figure,) = drawn
    assert titles(figure) == ["l1", "adversarial", "validation, PSNR in dB"]
    bold = [line for line in figure.axes[0].lines if line.get_alpha() is None]
    assert [len(line.get_xdata()) for line in bold] == [100, 60]
    assert bold[0].get_color() != bold[1].get_color()
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.split("  |  ")[0] for text in words] == ["a/run", "b/run"], "two runs of one name are told apart"
    keys = [line.get_color() for line in figure.legends[0].get_lines()]
    assert keys == [line.get_color() for line in bold]
    assert figure.axes[2].lines[0].get_color() == keys[1], "a run keeps its colour in every panel"


def test_many_runs_are_told_apart() -> None:
    styles = {(curves._colour(at), curves._dash(at)) for at in range(14)}
    assert len(styles) == 14


def test_no_label_lies_on_another(tmp_path: Path, drawn: list[Figure]) -> None:
    terms = {f"{kind}_{side}": 1.0 for kind in ("adversarial", "cycle", "identity") for side in ("clear", "degraded")}
    folder = run(tmp_path / "run", 12_000, validate=4000, **terms)
    draw_curves([read_curves(folder)], tmp_path / "losses.png")
    figure = drawn[0]
    figure.canvas.draw()
    for axis in figure.axes:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])


def test_the_mean_over_neighbours() -> None:
    values = np.array([0.0, 3, 6, 9, 30])
    assert smoothed(values, 1).tolist() == values.tolist()
    assert smoothed(values, 3).tolist() == [1.5, 3, 6, 15, 19.5]


def test_thinning_keeps_the_extremes() -> None:
    steps = np.arange(50_000.0)
    values = np.sin(steps / 900)
    values[12_345], values[40_001] = 9, -9
    few, kept = thinned((steps, values))
    assert len(few) <= 2000
    assert (np.diff(few) > 0).all()
    assert (kept.max(), kept.min()) == (9, -9)
    assert few[kept.argmax()] == 12_345
    assert thinned((steps[:2000], values[:2000]))[0].size == 2000


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    told = [read_curves(run(tmp_path / "run", 3, l1=3.0))]
    with pytest.raises(BadSettings, match=r"losses\.txt.*\.png"):
        draw_curves(told, tmp_path / "losses.txt")
    with pytest.raises(BadFolder, match="nowhere"):
        draw_curves(told, tmp_path / "nowhere" / "losses.png")
