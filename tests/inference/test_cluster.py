"""Photos over a pool of workers: the results of one machine, failures by name, and workers that are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, images
from fairweather.errors import BadCard, BadSettings, MissingExtra
from fairweather.inference import batch, cluster
from fairweather.inference.batch import plan
from fairweather.inference.memory import MemoryBudget
from fairweather.inference.restorer import RestoreOptions
from tests.inference.standins import NEGATIVE, FunctionRestorer, put


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """A local cluster of two processors, for all tests: starting one takes seconds."""
    ray = pytest.importorskip(
        "ray", reason="RAY IS NOT INSTALLED: --cluster is not tested (pip install -e '.[cluster]')"
    )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.fixture
def photos(here: Path, rng: np.random.Generator) -> list[str]:
    """Twenty photos in two folders, two of them broken."""
    for number in range(20):
        path = here / "in" / str(number % 2) / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    (here / "in" / "0" / "04.png").write_text("Dear diary, today it was foggy.")
    (here / "in" / "1" / "11.png").write_bytes(b"")
    return sorted(path.as_posix() for path in Path("in").rglob("*.png"))


Opened = tuple[FunctionRestorer, MemoryBudget]


def hidden() -> list[Path]:
    return [path for path in Path().rglob(".*") if path.is_file()]


def test_results_and_report_are_those_of_one_machine(two_workers: None, photos: list[str]) -> None:
    def make(options: RestoreOptions, threads: int | None) -> Opened:
        assert threads == 1
        return FunctionRestorer(lambda pixels: 255 - pixels), MemoryBudget()

    lines: list[str] = []
    report = cluster.run_on_cluster(plan(["in"], "many"), "local", open_restorer=make, log_line=lines.append)
    alone = batch.run(plan(["in"], "one"), restorer=NEGATIVE)
    assert (report.done, report.skipped, report.pixels) == (18, 0, alone.pixels) == (alone.done, 0, 18 * 600)
    assert sorted(report.failed) == sorted(alone.failed), "the same words about the same names"
    whole = [name for name in photos if Path(name).name not in ("04.png", "11.png")]
    assert sorted(lines) == sorted(f"{name}: haze (100 % sure)" for name in whole), "by the names that were given"
    for path in Path("one").rglob("*.png"):
        assert Path("many", path.relative_to("one")).read_bytes() == path.read_bytes()
    assert len(list(Path("many").rglob("*.png"))) == 18
    again = cluster.run_on_cluster(plan(["in"], "many"), "local", open_restorer=make)
    assert (again.done, again.skipped, len(again.failed)) == (0, 18, 2)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_worker_costs_nothing_but_time(two_workers: None, overwrite: bool, photos: list[str]) -> None:
    """The first worker that has begun its third photo is killed as a machine that goes down would be."""
    seen = Path("seen").absolute()
    seen.mkdir()

    def make(options: RestoreOptions, threads: int | None) -> Opened:
        count = 0

        def restore(pixels: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            (seen / f"{os.getpid()}-{count}").touch()
            time.sleep(0.05)
            return 255 - pixels

        return FunctionRestorer(restore), MemoryBudget()

    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not killed:
            for path in seen.glob("*-2"):
                killed.append(int(path.name.split("-")[0]))
                os.kill(killed[0], signal.SIGKILL)
                break
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    report = cluster.run_on_cluster(
        plan(["in"], "many"), "local", RestoreOptions(overwrite=overwrite), open_restorer=make
    )
    killer.join()
    assert len(killed) == 1
    pids = {path.name.split("-")[0] for path in seen.iterdir()}
    assert len(pids) == 3, "two workers, and one in the killed one's place"
    assert (report.done, report.skipped) == (18, 0)
    assert sorted(Path(path).name for path, _ in report.failed) == ["04.png", "11.png"]
    made = sorted(path.as_posix() for path in Path("many").rglob("*.png"))
    assert len(made) == 18, "each is there once"
    for path in made:
        given = images.read(path.replace("many", "in", 1)).pixels
        assert (images.read(path).pixels == 255 - given).all()
    assert not hidden()


def test_a_photo_that_kills_every_worker_is_named_and_the_rest_is_done(two_workers: None, here: Path) -> None:
    put(*(here / "in" / f"{number}.png" for number in range(6)))
    put(here / "in" / "3.png", value=99)

    def make(options: RestoreOptions, threads: int | None) -> Opened:
        def restore(pixels: np.ndarray) -> np.ndarray:
            if pixels[0, 0, 0] == 99:
                os.kill(os.getpid(), signal.SIGKILL)
            return 255 - pixels

        return FunctionRestorer(restore), MemoryBudget()

    report = cluster.run_on_cluster(plan(["in"], "out"), "local", open_restorer=make)
    assert report.done == 5
    ((path, message),) = report.failed
    assert path == "in/3.png"
    assert "in/3.png: 3 workers were lost" in message


def test_an_error_about_the_model_ends_the_run(two_workers: None, photos: list[str]) -> None:
    def make(options: RestoreOptions, threads: int | None) -> Opened:
        raise BadCard("weights are gone")

    with pytest.raises(BadCard, match="weights are gone"):
        cluster.run_on_cluster(plan(["in"], "out"), "local", open_restorer=make)


def test_the_command_gives_what_one_machine_gives(
    two_workers: None, tiny_model: Path, here: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        Path("in").mkdir(exist_ok=True)
        Image.fromarray(photo[:, number:]).save(f"in/{number}.png")
    words = ["restore", "in", "--model", str(tiny_model), "--engine", "onnxruntime"]
    assert cli.main([*words, "-o", "one"]) == 0
    assert cli.main([*words, "-o", "many", "--cluster", "local"]) == 0
    assert "3 of 3 photos restored" in capsys.readouterr().out.splitlines()[-1]
    for number in range(3):
        one, many = (images.read(f"{place}/{number}.png").pixels.astype(int) for place in ("one", "many"))
        assert np.abs(one - many).max() <= 1


def test_an_invalid_address_is_rejected(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="RAY IS NOT INSTALLED: --cluster is not tested (pip install -e '.[cluster]')")
    put(here / "a.png")
    with pytest.raises(BadSettings, match=r"--cluster: invalid address 'moon'.*ray://"):
        cluster.run_on_cluster(plan(["a.png"]), "moon")


def test_without_ray_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    put(here / "a.png")
    with pytest.raises(MissingExtra, match=r"fairweather\[cluster\]"):
        cluster.run_on_cluster(plan(["a.png"]), "local")
    put(here / "restored" / "a.png")
    assert cluster.run_on_cluster(plan(["a.png"]), "local").skipped == 1, "nothing to do needs no cluster"


class Elsewhere:
    """What a worker cannot unpickle, as where fairweather is not installed."""

    def __call__(self, options: RestoreOptions, threads: int | None) -> Opened:
        raise AssertionError("it never gets that far")

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__, ("fairwether",)


def test_workers_that_cannot_start_end_the_run(two_workers: None, photos: list[str]) -> None:
    # the last test with these workers: after an actor that failed to start, the next one was seen to wait for long
    with pytest.raises(BadSettings, match=r"a worker cannot start .*fairwether.*same paths"):
        cluster.run_on_cluster(plan(["in"], "out"), "local", open_restorer=Elsewhere())
    assert not Path("out").exists()
