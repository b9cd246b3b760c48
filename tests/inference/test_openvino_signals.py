"""Ctrl-C after OpenVINO models were released."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, signal
from fairweather import model_folder
from fairweather.inference.engines import open_engine
folder = model_folder.find("derain-fast")
opened = [open_engine("openvino", folder, model_folder.read_card(folder)) for _ in range(2)]
del opened[0], opened[0]
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_models_were_released_is_no_segmentation_fault() -> None:
    """With a core for each model, the signal would be handled on a stack that OpenVINO has freed."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
