"""Layers that lose too much are found by measuring, and as few as will do stay in float."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from fairweather.deploy import int8, quantization
from fairweather.deploy.onnx_export import write_onnx
from fairweather.deploy.parity import Similarity, SimilarityBar, compare_models, similarity_margin
from fairweather.deploy.sample_photos import CalibrationSample

LAYERS = [f"layer{number}" for number in range(12)]


def errors(chosen: Collection[str], cost: dict[str, float]) -> dict[str, Similarity]:
    """Squared errors add."""
    total = 1e-9 + sum(cost.get(layer, 1e-7) for layer in chosen)
    return {"openvino": Similarity(-10 * np.log10(total), 0.0, None, 1), "other": Similarity(90.0, 0.0, None, 1)}


def test_as_few_as_will_do_and_the_worst_first() -> None:
    cost = {"layer3": 1e-3, "layer7": 2e-4, "layer9": 1e-4, "layer1": 2e-5}
    asked: list[int] = []

    def measure(chosen: Collection[str]) -> dict[str, Similarity]:
        asked.append(len(chosen))
        return errors(chosen, cost)

    found = quantization.search_float_layers(LAYERS, measure, SimilarityBar(psnr=44.0, drop=None))
    assert list(found) == ["layer3", "layer7", "layer9"]
    assert found["layer3"] == "alone in int8 the pictures agree to 30.0 dB (openvino)"
    assert len(asked) < 1 + len(LAYERS) + 8
    asked.clear()
    assert quantization.search_float_layers(LAYERS, measure, SimilarityBar(psnr=20.0, drop=None)) == {}
    assert asked == [12], "nothing is searched for where all can be int8"
    assert len(quantization.search_float_layers(LAYERS, measure, SimilarityBar(psnr=95.0, drop=None))) == 12


def test_a_layer_built_to_lose_stays_in_float(tmp_path: Path) -> None:
    """Its channels answer to an input a thousandth of another's: one scale for the tensor rounds it away."""
    torch.manual_seed(1)
    first, lossy, last = (nn.Conv2d(a, b, 1, bias=False) for a, b in ((3, 8), (8, 8), (8, 3)))
    with torch.no_grad():
        first.weight.copy_(torch.rand(8, 3, 1, 1) / 3)
        first.weight[0] *= 2000
        lossy.weight.copy_(torch.eye(8)[:, :, None, None])
        lossy.weight[0] = 0  # what is large is not looked at any more
        last.weight.copy_(torch.rand(3, 8, 1, 1) / 8)
    network = nn.Sequential(first, nn.ReLU(), lossy, nn.ReLU(), last).eval()
    write_onnx(network, tmp_path / "model.onnx", 1)
    model = onnx.load(tmp_path / "model.onnx")
    fed = [np.random.default_rng(seed).random((1, 3, 24, 32), np.float32) for seed in range(3)]
    ranges = int8.measured_ranges(model, fed)
    with torch.no_grad():
        wanted = [network(torch.from_numpy(one)).numpy() for one in fed]

    def measure(chosen: Collection[str]) -> dict[str, Similarity]:
        import onnxruntime

        made = int8.quantize_static(model, ranges, chosen)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        found = [session.run(None, {session.get_inputs()[0].name: one})[0] for one in fed]
        asked = [CalibrationSample(str(number), one) for number, one in enumerate(fed)]
        return {"onnxruntime": compare_models(wanted, found, asked)}

    assert list(int8.quantizable_layers(model)) == ["0", "2", "4"]
    found = quantization.search_float_layers(
        list(int8.quantizable_layers(model)), measure, SimilarityBar(psnr=35.0, drop=None)
    )
    assert "2" in found
    assert len(found) < 3
    assert measure([layer for layer in ("0", "2", "4") if layer not in found])["onnxruntime"].psnr >= 35


def test_the_bar_between_outputs_follows_from_the_drop() -> None:
    """A noise that lies `margin` below an error makes it worse by just the drop."""
    for drop in (0.1, 0.15):
        error, noise = 10**-2.8, 10 ** (-(28 + similarity_margin(drop)) / 10)
        assert abs(-10 * np.log10(error + noise) - (28 - drop)) < 1e-9
    bar = SimilarityBar(psnr=40.0, drop=0.15)
    assert bar.missed(Similarity(41.0, 0.1, -0.14, 5)) is None
    assert "-0.20 dB" in str(bar.missed(Similarity(41.0, 0.1, -0.2, 5)))
    assert bar.missed(Similarity(41.0, 0.1, -0.14, 5), slack=0.2) is not None
    assert "39.0 dB" in str(bar.missed(Similarity(39.0, 0.1, 0.3, 5))), "nearer to the truth by chance: another network"
    assert bar.missed(Similarity(float("nan"), 0.1, float("nan"), 5)) is not None


def test_a_networks_ends_stay_in_float(tmp_path: Path) -> None:
    """Two layers are fed the photo, one of them through a ReLU; two heads say what is seen, one through a sigmoid."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eye, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.inner = nn.Sequential(*(layer for _ in range(9) for layer in (nn.Conv2d(4, 4, 1), nn.ReLU())))
            self.haze, self.colour = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = self.inner(torch.relu(self.eye(x)) + self.other(torch.relu(x - 0.5)))
            return torch.cat([torch.sigmoid(self.haze(inner)), self.colour(inner)], 1)

    write_onnx(Two().eval(), tmp_path / "model.onnx", 1)
    found = int8.outer_layers(onnx.load(tmp_path / "model.onnx"))
    assert {layer: why.split()[0] for layer, why in found.items()} == {
        "eye": "it",
        "other": "it",
        "haze": "no",
        "colour": "no",
    }
    write_onnx(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval(), tmp_path / "small.onnx", 1)
    assert int8.outer_layers(onnx.load(tmp_path / "small.onnx")) == {}, "there would be nothing left"
