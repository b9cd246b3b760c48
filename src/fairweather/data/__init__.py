"""Training data: folders of pairs, unpaired folders, synthetic weather over clear photos, and weighted mixtures.

A dataset's `sample(seed, epoch, index)` returns `{"degraded": ..., "clear": ...}`, each 3 x S x S float32 in [0,1]. A
sample depends only on these three numbers, in any thread and order. Callers that load in several threads should set
`cv2.setNumThreads(1)` and use one torch thread each: the pictures are too small to split.
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
