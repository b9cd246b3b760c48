"""Fixtures that every room's tests share."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# A background job of a shell has Ctrl-C switched off, and hands that on to the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Which engine is faster on a busy machine is chance, and nothing of a test belongs into the user's cache folder.
os.environ["FAIRWEATHER_ENGINE_MEASURE"] = "0"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos that may lie beside the checkout; tests that need it skip where it does not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real photos (../shared/data) are not beside this checkout")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def photo(rng: np.random.Generator) -> np.ndarray:
    """A smooth 96 x 128 x 3 uint8 picture with edges: more like a photo than white noise is."""
    y, x = np.mgrid[0:96, 0:128] / 96.0
    base = np.stack([0.5 + 0.4 * np.sin(5 * x + k) * np.cos(4 * y - k) for k in range(3)], axis=-1)
    base[30:60, 40:90] *= 0.5
    base += rng.normal(0, 0.02, base.shape)
    return (base.clip(0, 1) * 255).round().astype(np.uint8)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives the folder of a name, not to be changed: the first of the processes side by side that asks for it makes it
    (whole or not at all), the others wait and share it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    root.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / name).exists():
                make(root / name)
        return root / name

    return made


@pytest.fixture(scope="session")
def narrow_model(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """The model folder of a generator as tests/narrow.py has it, by name; exported once, not to be changed."""
    from tests.narrow import write_model

    return lambda name: made_once(f"narrow-{name}", lambda folder: write_model(name, folder))


@pytest.fixture(scope="session")
def tiny_model(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The model folder of a U-Net of two levels with lively random weights; exported once, not to be changed."""
    return made_once("tiny", write_tiny)


def write_tiny(folder: Path) -> None:
    import torch

    from fairweather.deploy.onnx_export import export_generator
    from fairweather.generators import GENERATORS

    arguments = {"levels": 2, "width": 4}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        generator = GENERATORS["unet"](**arguments)
        for value in [*generator.parameters(), *generator.buffers()]:
            if value.is_floating_point() and value.dim() == 1:
                torch.nn.init.uniform_(value, 0.5, 1.5)
            elif value.dim() > 1:
                torch.nn.init.normal_(value, std=0.15)
    export_generator(
        generator,
        folder,
        name="tiny",
        weather="haze",
        generator_name="unet",
        arguments=arguments,
        licence="MIT",
        terms="made of random numbers",
        training={"recipe": "none"},
    )
