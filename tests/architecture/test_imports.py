"""Which room may know which: the house's import rule, read from the source of every module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.imports import SOURCE, Import, files, imports_of, room

BASE = {"errors", "files", "images"}
RULE: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "images": {"errors", "files"},
    "validation": {"errors"},
    "model_folder": {"errors", "files"},
    "pairs": BASE,
    "weather": BASE,
    "generators": {*BASE, "weather", "validation"},
    "discriminators": {*BASE, "weather"},
    "losses": {*BASE, "weather"},
    "weather_classifier": set(),
    "recipes": {*BASE, "validation", "weather", "generators", "discriminators", "losses"},
    "data": {*BASE, "weather", "pairs"},
    "inference": {*BASE, "model_folder"},
    "video": {*BASE, "inference"},
    "evaluation": {*BASE, "model_folder", "pairs", "inference"},
    "web": {*BASE, "model_folder", "inference", "video"},
    "deploy": {*BASE, "model_folder", "pairs", "generators", "inference", "evaluation"},
    "training": {
        *BASE,
        *("model_folder", "validation", "pairs", "weather", "generators"),
        *("discriminators", "losses", "recipes", "data"),
    },
    "__init__": {"errors"},
    "__main__": {"cli"},
    "cli": {"errors"},
    "commands": {*BASE, "model_folder", "web"},  # web.limits: the defaults of `serve`
}
"""Package or module -> the others that it may import at module level. A new one needs a line here."""

LATE: dict[str, set[str]] = {
    "inference": {"generators", "weather_classifier", "video"},  # the torch engine, and a batch with videos in it
    "training": {"deploy", "inference", "evaluation"},  # a run ends with its export and returns its restorer
    "__init__": {"inference", "training"},  # the public surface, name by name
    "commands": set(RULE) - {"cli", "commands", "__init__"},  # commands compose everything, each on its own call
    "cli": {"commands", "training"},  # `train` restarts itself with allocator settings before torch is imported
}
"""Package or module -> what it may import in addition inside a function."""

TORCH_FREE = {
    *("__init__", "cli", "commands", "__main__", "errors", "files", "images", "model_folder", "models"),
    *("pairs", "inference", "evaluation", "video", "web", "validation"),
}
LEARNING = {"torch", "lightning", "torchmetrics", "onnxscript"}
DEFAULT_INSTALL = {
    *("numpy", "PIL", "cv2", "openvino", "safetensors", "tyro", "rich", "msgspec", "psutil", "platformdirs"),
}


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
        if room(imported.file)
        in {"__init__", "__main__", "cli", "errors", "files", "images", "model_folder", "inference"}
        and not imported.late
        and imported.module.split(".")[0] not in {*standard, *DEFAULT_INSTALL, "fairweather", "__future__"}
    ]
    assert not outside, "\n".join(outside)


def import_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(sorted(component))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def module_graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports when it is imported itself."""
    modules = {
        ".".join(["fairweather", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in files()
    }
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        imported = (one.module for one in imports_of(path) if not one.late)
        known = {module if module in modules else module.rpartition(".")[0] for module in imported}
        graph[name] = (known & set(modules)) - {name, "fairweather"}
    return graph


def test_no_two_modules_import_each_other() -> None:
    assert not import_cycles(module_graph())
    assert import_cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_siblings_never_meet() -> None:
    siblings = {"generators", "discriminators", "losses"}
    for name in siblings:
        assert not (RULE[name] | LATE.get(name, set())) & (siblings - {name})


@pytest.mark.parametrize(
    ("file", "source", "caught"),
    [
        ("inference/x.py", "import torch", True),
        ("inference/x.py", "def f():\n    import torch", False),
        ("inference/x.py", "from fairweather.recipes import RECIPES", True),
        ("inference/x.py", "def f():\n    from fairweather.recipes import RECIPES", True),
        ("inference/x.py", "def f():\n    from fairweather.generators import GENERATORS", False),
        ("inference/x.py", "from fairweather import losses", True),
        ("inference/x.py", "from .. import losses", True),
        ("inference/x.py", "from . import tiles", False),
        ("losses/x.py", "from fairweather.generators.unet import UNet", True),
        ("weather/x.py", "import torch.nn.functional as F", False),
        ("model_folder.py", "if TYPE_CHECKING:\n    import torch", False),
        ("model_folder.py", "try:\n    import torch\nexcept ImportError:\n    torch = None", True),
        ("images.py", "import fairweather.model_folder", True),
    ],
)
def test_the_rule_catches(tmp_path: Path, file: str, source: str, caught: bool) -> None:
    """The test of the test: each breach is found, each permitted import is not."""
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert any(breach(imported) for imported in imports_of(path, tmp_path)) is caught
