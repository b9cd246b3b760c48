"""The benchmarks are scripts that import each other by name: their folder goes on the path, as when they run."""

from __future__ import annotations

import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
