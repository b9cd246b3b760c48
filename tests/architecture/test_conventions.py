"""The house's manners: short files, names that say something, pins without addresses, one list of generators."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter

from tests.architecture.imports import SOURCE, files
from tests.conftest import ROOT

EMPTY_NAMES = re.compile(r"(^|_)(utils?|common|helpers?|misc|shared|tools)(_|$)")


def test_no_two_files_and_no_two_classes_share_a_name() -> None:
    names = Counter(path.name for path in files() if path.name != "__init__.py")
    assert not [name for name, count in names.items() if count > 1]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files()]
    classes = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert not [name for name, count in classes.items() if count > 1 and not name.startswith("_")]


def test_no_file_is_called_nothing() -> None:
    names = [
        path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*") if "__pycache__" not in str(path)
    ]
    assert not [path for path in names if EMPTY_NAMES.search(path.name.split(".")[0])]
    assert EMPTY_NAMES.search("train_utils")
    assert not EMPTY_NAMES.search("restorer")


def test_every_module_says_what_it_is() -> None:
    for path in files():
        text = path.read_text(encoding="utf-8")
        assert text.lstrip().startswith(('"""', 'r"""')), f"{path}: no docstring"


def test_cards_and_generators_name_the_same_networks() -> None:
    from fairweather.generators import GENERATORS
    from fairweather.model_folder import GENERATOR_NAMES

    assert tuple(GENERATORS) == GENERATOR_NAMES


def test_constraints_pin_every_requirement_and_hold_no_address() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    assert len(pinned) == len(lines), "a package is pinned twice"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", name)[0]).lower() for name in wanted}  # type: ignore[index]
    assert not {name for name in names if not name.startswith("fairweather")} - pinned


def test_torch_is_no_part_of_the_default_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [name for name in project["dependencies"] if re.match(r"torch|lightning|onnx", name)]


def test_shipped_models_are_whole() -> None:
    from fairweather import model_folder

    for name, folder in model_folder.shipped().items():
        card = model_folder.read_card(folder)  # BadCard where a byte is wrong
        assert card.name == name
        assert card.scores, f"{name} ships without scores"
        assert card.terms


def test_package_data_takes_the_models_along() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["fairweather"]
    for folder in (SOURCE / "models").glob("*/"):
        for file in folder.iterdir():
            assert any(file.relative_to(SOURCE).match(pattern) for pattern in data), f"{file} would not be installed"
