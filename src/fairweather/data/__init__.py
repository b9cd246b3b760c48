"""Training data: folders of pairs, unpaired folders, weather made over clear photos, and weighted mixtures of these.

A dataset gives `sample(seed, epoch, index)` -> `{"degraded": ..., "clear": ...}`, each 3 x S x S float32 in [0,1], and
nothing but the three numbers decides what: neither threads nor the order of the calls. Callers that load in threads of
their own should set `cv2.setNumThreads(1)` and torch to one thread there: the pictures are too small to share out.
"""

from __future__ import annotations

from fairweather.data.augment import Augment
from fairweather.data.datasets import Dataset, Sample, UnpairedDataset, paired_dataset, unpaired_dataset
from fairweather.data.mixture import Mixture, MixtureSettings, SourceSettings

__all__ = [
    "Augment",
    "Dataset",
    "Mixture",
    "MixtureSettings",
    "Sample",
    "SourceSettings",
    "UnpairedDataset",
    "paired_dataset",
    "unpaired_dataset",
]
