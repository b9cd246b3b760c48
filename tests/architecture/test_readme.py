"""Every snippet of the prose is run or parsed, every path in it exists, and the file map is the tree."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairweather import cli, images, model_folder
from tests.architecture.imports import SOURCE, files
from tests.conftest import ROOT

PROSE = [
    *("README.md", "CONTRIBUTING.md", "examples/README.md"),
    *("docs/systems.md", "docs/models.md", "docs/speed.md", "docs/api.md"),
]
SNIPPET = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)\)")
LATER = {"docs/before-after.jpg"}
"""Paths that the prose names before they exist: none, once the picture is made."""


def snippets(language: str) -> list[tuple[str, int, str]]:
    """(file, number, text) of every snippet in a language."""
    found = []
    for name in PROSE:
        texts = [text for kind, text in SNIPPET.findall((ROOT / name).read_text()) if kind == language]
        found += [(name, number, text) for number, text in enumerate(texts)]
    return found


def commands() -> list[tuple[str, list[str]]]:
    """(file, words) of every `fairweather ...` line in the prose, continued lines joined."""
    lines = [(name, line) for name, _, text in snippets("sh") for line in text.replace("\\\n", " ").splitlines()]
    return [(name, shlex.split(line)[1:]) for name, line in lines if line.startswith("fairweather ")]


def shipped_dehaze() -> Path:
    if "dehaze" not in model_folder.shipped():
        pytest.skip("NO MODEL SHIPS YET: models/dehaze is not there, so the README's snippets cannot be run")
    return model_folder.shipped()["dehaze"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with examples/ in it, where snippets may write."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_snippets() -> None:
    assert len(snippets("python")) >= 2
    assert len(commands()) >= 5
    kinds = {kind for name in PROSE for kind, _ in SNIPPET.findall((ROOT / name).read_text())}
    assert kinds <= {"python", "sh", "math"}, "a snippet in a language that no test reads"


def test_readme_restores_from_python(checkout: Path) -> None:
    shipped_dehaze()

    names: dict[str, Any] = {}
    exec(compile(snippets("python")[0][2], "README.md", "exec"), names)
    before, after = images.read("examples/lighthouse.jpg"), images.read("clear.jpg")
    assert after.pixels.shape == before.pixels.shape
    assert abs(after.pixels.astype(int) - before.pixels.astype(int)).mean() > 1


def test_readme_trains_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training snippet would take hours: what it says is bound to the real signature, and the run is a stand-in."""
    import inspect

    import fairweather

    signature = inspect.signature(fairweather.train)
    calls = []

    class Run:
        def restorer(self):  # type: ignore[no-untyped-def]
            def restore(pixels: Any) -> Any:
                assert isinstance(pixels, np.ndarray)  # a restorer takes no Photo
                return pixels

            return restore

    def train(*args: Any, **settings: Any) -> Run:
        calls.append(signature.bind(*args, **settings).arguments)
        return Run()

    from fairweather.training import Run as RealRun

    assert callable(RealRun.restorer)
    monkeypatch.setattr(fairweather, "train", train)
    photo = images.read(ROOT / "examples" / "lighthouse.jpg")  # as the snippet before it leaves it
    exec(compile(snippets("python")[1][2], "README.md", "exec"), {"photo": photo})
    assert calls


@pytest.mark.parametrize(
    ("name", "words"), commands(), ids=lambda value: " ".join(value) if type(value) is list else value
)
def test_every_command_is_understood(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the real parser against the verb's real signature; the verb itself is left out."""
    verb = words[0].replace("-", "_")
    module = import_module(f"fairweather.commands.{cli.VERBS[words[0]]}")
    called = []

    @functools.wraps(getattr(module, verb))
    def stand_in(*args: Any, **settings: Any) -> int:
        called.append(settings)
        return 0

    monkeypatch.setattr(module, verb, stand_in)
    monkeypatch.chdir(ROOT)
    assert cli.main(words) == 0, f"{name}: fairweather {' '.join(words)}"
    assert len(called) == 1


def test_readme_first_command_runs(checkout: Path) -> None:
    shipped_dehaze()
    name, words = commands()[0]
    assert (name, words[0]) == ("README.md", "restore")
    assert cli.main(words) == 0
    assert (checkout / words[words.index("-o") + 1]).stat().st_size > 10_000


@pytest.mark.parametrize("name", PROSE)
def test_every_link_leads_somewhere(name: str) -> None:
    for target in LINK.findall((ROOT / name).read_text()):
        if not target.startswith("http") and target not in LATER:
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"


def test_the_file_map_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", text.split("map:begin")[1].split("map:end")[0], re.MULTILINE)
    named = [name for name, _ in rows]
    for name in named:
        assert (ROOT / name).exists(), f"the file map names {name}"
    tree = {path.relative_to(ROOT).as_posix() for path in files() if path != SOURCE / "verbs" / "__init__.py"}
    assert not tree - set(named), "files that the map leaves out"
    assert len(set(named)) == len(named)
    assert all(len(phrase) <= 100 for _, phrase in rows)


def test_every_example_has_its_origin_written_down() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    photos = [path for path in (ROOT / "examples").iterdir() if path.suffix != ".md"]
    assert len(photos) >= 5
    for photo in photos:
        assert f"`{photo.name}`" in text
        assert photo.stat().st_size < 300_000
