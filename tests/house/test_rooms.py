"""Which room may know which: the house's import rule, read from the source of every module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.imports import SOURCE, Import, files, imports_of, room

RULE: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "images": {"errors", "files"},
    "cards": {"errors", "files"},
    "pairs": {"errors", "files", "images"},
    "weather": {"errors", "files", "images"},
    "generators": {"errors", "files", "images", "weather"},
    "discriminators": {"errors", "files", "images", "weather"},
    "losses": {"errors", "files", "images", "weather"},
    "recognizer": set(),
    "recipes": {"errors", "files", "images", "weather", "generators", "discriminators", "losses"},
    "data": {"errors", "files", "images", "weather", "pairs"},
    "restoring": {"errors", "files", "images", "cards"},
    "video": {"errors", "files", "images", "restoring"},
    "evaluation": {"errors", "files", "images", "cards", "pairs", "restoring"},
    "web": {"errors", "files", "images", "cards", "restoring", "video"},
    "deploy": {"errors", "files", "images", "cards", "pairs", "generators", "restoring", "evaluation"},
    "training": {
        *("errors", "files", "images", "cards", "pairs", "weather", "generators", "discriminators", "losses"),
        *("recipes", "data"),
    },
    "__init__": {"errors"},
    "__main__": {"cli"},
    "cli": {"errors"},
    "verbs": {"errors", "files", "images", "cards"},
}
RULE |= {name: RULE[name] | {"outputs"} for name in ("restoring", "video", "evaluation", "data", "deploy", "training")}
RULE["outputs"] = {"errors"}
"""Room -> the other rooms that it may import at module level. A new room needs a line here: that is the point."""

LATE: dict[str, set[str]] = {
    "restoring": {"generators", "recognizer"},  # the torch engine rebuilds the network when it is asked for
    "training": {"deploy", "restoring", "evaluation"},  # a run ends with its export, and gives its restorer
    "__init__": {"restoring", "training"},  # the public surface, name by name
    "verbs": set(RULE) - {"cli", "verbs", "__init__"},  # the verbs compose everything, each on its own call
    "cli": {"verbs", "training"},  # `train` starts itself again with memory settings, before torch is there
}
"""Room -> the further rooms that it may import inside a function, when that function runs."""

TORCH_FREE = {
    *("__init__", "cli", "verbs", "__main__", "errors", "files", "outputs", "images", "cards", "models"),
    *("pairs", "restoring", "evaluation", "video", "web"),
}
LEARNING = {"torch", "lightning", "torchmetrics", "onnxscript"}
DEFAULT_INSTALL = {"numpy", "PIL", "cv2", "openvino", "safetensors", "tyro", "rich"}


def breach(imported: Import) -> str | None:
    """What is wrong with one import, or None."""
    here = room(imported.file)
    top, *rest = imported.module.split(".")
    if here in TORCH_FREE and top in LEARNING and not imported.late:
        return f"{imported}: the room {here} is to work without PyTorch"
    if top != "fairweather" or not rest:
        return None
    there = rest[0] if (SOURCE / rest[0]).is_dir() or (SOURCE / f"{rest[0]}.py").is_file() else "__init__"
    allowed = RULE[here] | {here} | (LATE.get(here, set()) if imported.late else set())
    if there == "__init__" and rest[0] == "__version__":
        return None
    return None if there in allowed else f"{imported}: the room {here} may not know {there}"


def test_every_room_has_a_rule() -> None:
    rooms = {room(path.relative_to(SOURCE).as_posix()) for path in files()} - {"models"}
    assert not rooms - set(RULE), "a new room: say in RULE what it may know"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_module_keeps_to_its_room(path: Path) -> None:
    breaches = [wrong for imported in imports_of(path) if (wrong := breach(imported))]
    assert not breaches, "\n".join(breaches)


def test_restoring_needs_the_default_install_only() -> None:
    standard = __import__("sys").stdlib_module_names
    outside = [
        str(imported)
        for path in files()
        for imported in imports_of(path)
        if room(imported.file) in {"__init__", "__main__", "cli", "errors", "files", "images", "cards", "restoring"}
        and not imported.late
        and imported.module.split(".")[0] not in {*standard, *DEFAULT_INSTALL, "fairweather", "__future__"}
    ]
    assert not outside, "\n".join(outside)


def test_siblings_never_meet() -> None:
    siblings = {"generators", "discriminators", "losses"}
    for name in siblings:
        assert not (RULE[name] | LATE.get(name, set())) & (siblings - {name})


@pytest.mark.parametrize(
    ("file", "source", "caught"),
    [
        ("restoring/x.py", "import torch", True),
        ("restoring/x.py", "def f():\n    import torch", False),
        ("restoring/x.py", "from fairweather.recipes import RECIPES", True),
        ("restoring/x.py", "def f():\n    from fairweather.recipes import RECIPES", True),
        ("restoring/x.py", "def f():\n    from fairweather.generators import GENERATORS", False),
        ("restoring/x.py", "from fairweather import losses", True),
        ("restoring/x.py", "from .. import losses", True),
        ("restoring/x.py", "from . import tiles", False),
        ("losses/x.py", "from fairweather.generators.unet import UNet", True),
        ("weather/x.py", "import torch.nn.functional as F", False),
        ("cards.py", "if TYPE_CHECKING:\n    import torch", False),
        ("cards.py", "try:\n    import torch\nexcept ImportError:\n    torch = None", True),
        ("images.py", "import fairweather.cards", True),
    ],
)
def test_the_rule_catches(tmp_path: Path, file: str, source: str, caught: bool) -> None:
    """The test of the test: each breach is found, each permitted import is not."""
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert any(breach(imported) for imported in imports_of(path, tmp_path)) is caught
