"""The public surface: what `import fairweather` gives, and how little it costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

import fairweather
from tests.conftest import ROOT

PUBLIC = {
    *("load", "Restorer", "train"),
    *("FairweatherError", "UnknownName", "BadImage", "BadFolder", "BadCard", "BadSettings"),
    *("ParityFailed", "MissingExtra"),
}
HEAVY = {"torch", "lightning", "cv2", "openvino", "onnxruntime", "numpy", "PIL", "tyro", "rich", "skimage"}


def modules_after(code: str) -> set[str]:
    """Top-level names of the modules loaded in a fresh interpreter by `code`."""
    ending = "\nimport sys, json; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_all_is_the_public_surface() -> None:
    assert set(fairweather.__all__) == PUBLIC
    assert len(fairweather.__all__) == len(PUBLIC)
    assert set(dir(fairweather)) == PUBLIC | {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(fairweather, name)
    assert value.__name__ == name
    assert value.__module__.startswith("fairweather.")
    assert value.__doc__, f"fairweather.{name} has no docstring"


def test_every_error_is_of_the_tree() -> None:
    from fairweather import errors

    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree == PUBLIC - {"load", "Restorer", "train"}
    assert all(issubclass(getattr(fairweather, name), fairweather.FairweatherError) for name in tree)


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="restorr"):
        fairweather.restorr  # noqa: B018


def test_importing_is_light() -> None:
    assert not modules_after("import fairweather") & HEAVY


def test_loading_imports_no_torch() -> None:
    loaded = modules_after("import fairweather; fairweather.load; fairweather.Restorer; fairweather.BadImage")
    assert not loaded & {"torch", "lightning", "openvino", "onnxruntime"}
    assert "cv2" in loaded or "numpy" in loaded, "the test looks at the wrong thing: nothing was loaded"


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # `import torch` raises ModuleNotFoundError, as where it is not installed
sys.modules["lightning"] = None
"""


def test_without_torch_the_surface_stands_and_train_says_what_to_install() -> None:
    code = (
        WITHOUT_TORCH
        + """
from fairweather import *
try:
    train("pix2pix", data=".")
except MissingExtra as error:
    assert "fairweather[train]" in str(error), error
else:
    raise SystemExit("train ran without torch")
"""
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_version_is_the_package_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fairweather.__version__ == project["version"]
