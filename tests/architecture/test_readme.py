"""The documentation: snippets run or parse, links resolve, the README is short, and the architecture page is true."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import shlex
import shutil
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fairweather
from fairweather import cli
from tests.architecture.imports import SOURCE, files
from tests.conftest import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "examples/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
SNIPPET = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
ELSEWHERE = {"docs/api.md"}
"""Pages whose Python is run by tests of their own (tests/web)."""


def snippets(page: str, language: str) -> list[str]:
    return [text for kind, text in SNIPPET.findall((ROOT / page).read_text(encoding="utf-8")) if kind == language]


def commands(page: str) -> list[list[str]]:
    """The words of every `fairweather ...` line of a page: snippets, and code in tables."""
    lines = [line for text in snippets(page, "sh") for line in text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^\| `(fairweather [^`]+)` \|", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    words = [shlex.split(part, comments=True) for line in lines for part in line.split(" | ")]
    return [line[1 : line.index(">") if ">" in line else None] for line in words if line[:1] == ["fairweather"]]


COMMANDS = [pytest.param(words, id=f"{page}: {' '.join(words)}") for page in PAGES for words in commands(page)]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_snippet_is_in_a_language_that_is_tested() -> None:
    kinds = {kind for page in PAGES for kind, _ in SNIPPET.findall((ROOT / page).read_text(encoding="utf-8"))}
    assert kinds <= {"python", "sh", "toml", "text"}
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("words", COMMANDS)
def test_command_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the real parser against the command's real signature; only the command's body is replaced."""
    if "--help" in words:
        assert cli.main(words) == 0
        return
    name = words[0].replace("-", "_")
    module = import_module(f"fairweather.commands.{'models' if name == 'info' else name}")
    calls = []

    @functools.wraps(getattr(module, name))
    def record(*args: Any, **options: Any) -> int:
        calls.append(options)
        return 0

    monkeypatch.setattr(module, name, record)
    if name == "synthesize":  # parsing its flags loads the model
        monkeypatch.setattr(module, "_load_model", lambda *args: None, raising=False)
    monkeypatch.chdir(ROOT)
    assert cli.main(words) == 0
    assert len(calls) == 1


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "toml")])
def test_toml_parses(page: str) -> None:
    from fairweather.data.mixture import MixtureSettings

    for text in snippets(page, "toml"):
        table = tomllib.loads(text)
        assert set(table) <= {"extends", "run", "data", "recipe", "generator"}
        if "data" in table:
            MixtureSettings.from_table(table["data"])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with examples/ in which snippets may write."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "python") and page not in ELSEWHERE])
def test_python_runs(page: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python of a page, in order. Training takes hours: its arguments are bound to the real signature instead."""
    signature = inspect.signature(fairweather.train)

    class TrainedRun:
        def restorer(self) -> Any:
            return lambda pixels: np.array(pixels)

    def train(*args: Any, **options: Any) -> TrainedRun:
        signature.bind(*args, **options)
        return TrainedRun()

    from fairweather.training import Run

    assert callable(Run.restorer)
    monkeypatch.setattr(fairweather, "train", train)
    names: dict[str, Any] = {}
    for text in snippets(page, "python"):
        exec(compile(text, page, "exec"), names)
    photo, clear = names["photo"].pixels, names["clear"]
    assert (clear.shape, clear.dtype) == (photo.shape, photo.dtype)
    if page == "README.md":
        written = fairweather.images.read(checkout / "clear.jpg").pixels
        assert abs(written.astype(int) - photo.astype(int)).mean() > 1


def test_readme_first_command_runs(checkout: Path) -> None:
    words = commands("README.md")[0]
    assert words[0] == "restore"
    assert cli.main(words) == 0
    assert (checkout / words[words.index("-o") + 1]).stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    """Links between files; `mkdocs build --strict` checks those inside the site, anchors included."""
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if target.startswith("http") or not path:
            continue
        file = (ROOT / page).parent / path
        assert file.exists(), f"{page} links to {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_the_text_exist(page: str) -> None:
    text = SNIPPET.sub("", (ROOT / page).read_text(encoding="utf-8"))
    pattern = r"`((?:src|docs|runs|tests|benchmarks|examples)/[\w./-]+|[\w-]+\.toml)`"
    roots = (ROOT, ROOT / "runs", ROOT / "runs" / "ship")
    for name in re.findall(pattern, text):
        if "NAME" not in name:
            assert any((root / name).exists() for root in roots), f"{page} names {name}"


def test_every_example_has_its_origin_written_down() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    photos = [path for path in (ROOT / "examples").iterdir() if path.suffix != ".md"]
    assert len(photos) >= 5
    for photo in photos:
        assert f"`{photo.name}`" in text
        assert photo.stat().st_size < 300_000


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CHAINS = {
    name: re.findall(r"^\| \d+ \| `([^`]+)` \| `([^`]+)` \|", text, re.MULTILINE)
    for name, text in re.findall(r"^## Call chain: (.+?)\n(.*?)(?=^## )", ARCHITECTURE, re.MULTILINE | re.DOTALL)
}


def source_of(file: str, function: str) -> str:
    """The source of `function` or `Class.method` in a file of the package. AssertionError if there is none."""
    text = (SOURCE / file).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in function.split("."):
        found = [child for child in node.body if getattr(child, "name", None) == part]
        assert found, f"{file} defines no {function}"
        node = found[-1]
    return ast.get_source_segment(text, node) or ""


@pytest.mark.parametrize("name", ["restoring a photo", "a training step"])
def test_call_chain(name: str) -> None:
    """Every hop exists, calls the next by name, and the chain has at most eight hops."""
    hops = CHAINS[name]
    assert 3 <= len(hops) <= 8
    assert hops[0] == ("cli.py", "main")
    sources = [source_of(file, function) for file, function in hops]
    for at, (_, function) in enumerate(hops[1:], start=1):
        called = function.rpartition(".")[2]
        if hops[at - 1][0] != "cli.py" and called not in ("__call__", "__init__", "step"):
            assert re.search(rf"\b{called}\b", sources[at - 1]), f"{hops[at - 1]} does not call {function}"


def test_architecture_shows_every_file() -> None:
    tree = ARCHITECTURE.split("```text\n")[1].split("```")[0]
    names = set(re.findall(r"[\w.-]+\.py\b", tree))
    assert not {path.name for path in files() if not path.name.startswith("__")} - names, "files missing from the tree"
    assert not names - {path.name for path in ROOT.rglob("*.py")}, "the tree names files that do not exist"


def test_architecture_names_files_that_exist() -> None:
    table = ARCHITECTURE.split("## Where a change goes")[1]
    named = re.findall(r"`([\w/.-]+\.(?:py|md|toml|js|html))`", table)
    assert len(named) > 20
    for name in named:
        assert (SOURCE / name).exists() or (ROOT / name).exists(), f"architecture.md names {name}"
