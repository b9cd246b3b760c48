"""Regression on clips: strips and frames, temporal terms, recurrent generators."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairweather.errors import BadSettings
from fairweather.generators import RecurrentMaps
from fairweather.losses import charbonnier
from fairweather.recipes import Batch, SupervisedVideo, SupervisedVideoSettings
from fairweather.recipes.supervised_video import frames_of, restored_clips, strips_of
from tests.recipes.standins import RecordingUpdate, Tint

ALONE = {"charbonnier": 0.0, "ssim": 0.0, "frequency": 0.0, "psnr": 0.0, "steadiness": 3.0}


def strips(frames: int = 4, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, frames * side, side, generator=torch.Generator().manual_seed(seed))


def test_strips_and_frames_are_the_same_pixels() -> None:
    strip = strips()
    clips = frames_of(strip)
    assert clips.shape == (2, 4, 3, 16, 16)
    assert torch.equal(clips[1, 2], strip[1, :, 32:48])
    assert torch.equal(strips_of(clips), strip)
    with pytest.raises(BadSettings, match=r"data\.frames"):
        frames_of(strip[:, :, :50])


def test_steadiness_penalizes_flickering_errors_only() -> None:
    class WithError(nn.Module):
        """Returns the input with an error of 0.2, in every frame or in every second one."""

        multiple_of = 1

        def __init__(self, flicker: bool) -> None:
            super().__init__()
            self.amount = nn.Parameter(torch.tensor(0.2))
            self.flicker = flicker

        def clip(self, frames: torch.Tensor, moves: torch.Tensor | None = None) -> torch.Tensor:
            on = torch.arange(frames.shape[1]) % 2 if self.flicker else torch.ones(frames.shape[1])
            return frames + self.amount * on.view(1, -1, 1, 1, 1)

    truth, terms = strips(), {}
    for flicker in (False, True):
        recipe = SupervisedVideo(lambda flicker=flicker: WithError(flicker), SupervisedVideoSettings(**ALONE))
        terms[flicker] = recipe.step(Batch(truth, truth), RecordingUpdate(recipe))["steadiness"].item()
    none = 3 * charbonnier(torch.zeros(1), torch.zeros(1)).item()
    assert terms[False] == pytest.approx(none, rel=1e-3)
    assert terms[True] == pytest.approx(3 * 0.2, rel=0.02)


def test_flicker_penalizes_pulsation_of_the_whole_frame() -> None:
    """By half a level in every second frame; noise, which has no mean, is not penalized."""
    only = {**ALONE, "steadiness": 0.0, "flicker": 10.0}
    truth = strips().clamp(0.1, 0.9)
    on = torch.arange(4).repeat_interleave(16)[:, None] % 2
    noise = 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))
    found = {}
    for name, off in (("pulse", 0.5 / 255 * on), ("still", torch.full_like(truth, 0.05)), ("noise", noise)):
        recipe = SupervisedVideo(lambda off=off: Adding(off))
        recipe.settings = SupervisedVideoSettings(**only)
        found[name] = recipe.step(Batch(truth, truth), RecordingUpdate(recipe))["flicker"].item()
    assert found["pulse"] == pytest.approx(10 * 0.5 / 255, rel=1e-3)
    assert found["still"] < 1e-5
    assert found["noise"] < 0.2 * 10 * 0.05


class Adding(nn.Module):
    """Adds a strip, and a parameter of zero."""

    multiple_of = 1

    def __init__(self, off: torch.Tensor) -> None:
        super().__init__()
        self.off, self.amount = off, nn.Parameter(torch.zeros(1))

    def clip(self, frames: torch.Tensor, moves: torch.Tensor | None = None) -> torch.Tensor:
        off = self.off if self.off.ndim == 4 else self.off.expand(2, 3, 64, 16)
        return frames + frames_of(off) + self.amount


def test_recurrent_generators_get_frames_in_order_others_each_frame_alone() -> None:
    torch.manual_seed(0)
    network = RecurrentMaps(size=32, widths=(4, 4, 4, 4), heads=2, states=2).eval()
    nn.init.normal_(network.maps_module.memory.outwards.weight)
    clips = frames_of(strips(side=32))
    with torch.no_grad():
        there = restored_clips(network, clips)
        back = restored_clips(network, clips.flip(1)).flip(1)
    assert (there - back).abs().max() > 1e-4
    tint = Tint()
    assert torch.equal(restored_clips(tint, clips), clips + tint.amount)
    assert tint.given[0].shape == (8, 3, 32, 32)


def test_only_the_recurrent_part_is_trained_unless_whole() -> None:
    def build() -> nn.Module:
        return RecurrentMaps(size=32, widths=(4, 4, 4, 4), heads=2, states=2)

    recipe = SupervisedVideo(build, SupervisedVideoSettings(whole=False))
    (group,) = recipe.optimizer_groups().values()
    own = {id(p) for p in recipe.restore.maps_module.memory.parameters()}
    assert {id(p) for p in group.parameters()} == own
    truth = strips(side=32)
    recipe.step(Batch(strips(side=32, seed=1), truth), RecordingUpdate(recipe))
    with pytest.raises(BadSettings, match=r"recipe\.whole"):
        SupervisedVideo(Tint, SupervisedVideoSettings(whole=False)).optimizer_groups()


def test_a_clip_of_one_frame_has_no_temporal_terms() -> None:
    recipe = SupervisedVideo(Tint)
    photo = strips(frames=1)
    assert "steadiness" not in recipe.step(Batch(photo, photo), RecordingUpdate(recipe))


def test_previews_are_strips() -> None:
    recipe = SupervisedVideo(Tint)
    strip = strips()
    assert torch.equal(recipe.preview(recipe.restore, strip), strip + recipe.restore.amount)
