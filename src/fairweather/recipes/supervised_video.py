"""Paired regression on clips: each frame against its ground truth, and its change against the ground truth's change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators import padded
from fairweather.losses import charbonnier, frequency, l1, ssim_loss
from fairweather.recipes.base import (
    Batch,
    Build,
    Decay,
    Decibel,
    GradientNorm,
    OptimizerGroup,
    Rate,
    Recipe,
    Share,
    Update,
    Weight,
    sum_terms,
)
from fairweather.recipes.supervised import negative_psnr


@dataclass(frozen=True)
class SupervisedVideoSettings:
    """Weights and optimizer. A term of weight zero is neither computed nor logged."""

    charbonnier: Weight = 1.0
    """Weight of the Charbonnier difference (Lai et al., LapSRN, CVPR 2017), over all frames."""
    ssim: Weight = 0.05
    """Weight of 1 - SSIM."""
    frequency: Weight = 0.05
    """Weight of the L1 difference of orthonormal Fourier transforms."""
    psnr: Weight = 0.01
    """Weight of the negative PSNR in dB, averaged over frames."""
    psnr_ceiling: Decibel = 38.0
    """PSNR in dB at which that term levels off."""
    steadiness: Weight = 1.0
    """Weight of the Charbonnier difference between the change from frame to frame in the output and in the ground
    truth: constant errors cost nothing, flickering ones do (the short-term loss of Lai et al., ECCV 2018, with the
    ground truth in place of optical flow)."""
    flicker: Weight = 0.0
    """Weight of the same as an L1 difference of the frames' mean colours: a pulsation of the whole frame by half a
    level of 255 is visible, but small in pixel differences."""
    whole: bool = True
    """Train the whole network; otherwise its recurrent part alone, and the output for a single frame stays the same."""
    follow: bool = True
    """Warp the recurrent state along the camera's motion, as video restoration does along the estimated motion."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon, as in `supervised`."""
    lr: Rate = 1e-3
    """Peak learning rate."""
    weight_decay: Share = 1e-4
    """Decoupled weight decay."""
    warmup: Decay = 0.02
    """Share of the run with a linear warm-up; afterwards half a cosine to zero."""
    clip: GradientNorm | None = 1.0
    """Maximum gradient norm (None: no clipping)."""
    ema: Decay = 0.99
    """Decay of the moving average of the exported weights; 0 exports the last weights."""


class SupervisedVideo(Recipe):
    """One generator, clips with their ground truth, and a weighted sum of differences in space and in time.

    A clip is stored as a strip: N x 3 x T S x S, its T square frames below each other (`data.frames`). A recurrent
    generator (one with a method `clip`) gets the frames of a clip in order, any other one each frame by itself.

    Terms: `charbonnier`, `ssim`, `frequency`, `psnr`, `steadiness`, `flicker`, each unless its weight is zero; the last
    two where T > 1.
    """

    settings_type: ClassVar[type[SupervisedVideoSettings]] = SupervisedVideoSettings
    paired: ClassVar[bool] = True
    uses_clips: ClassVar[bool] = True
    batch: ClassVar[int] = 2
    crop: ClassVar[int] = 192
    epochs: ClassVar[int] = 20
    generator: ClassVar[str] = "recurrent_maps"

    def __init__(self, build: Build, settings: SupervisedVideoSettings | None = None) -> None:
        super().__init__(build, settings)
        self.settings = settings or SupervisedVideoSettings()
        self.ema = self.settings.ema
        self.restore = build()

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        s = self.settings
        return {
            "generator": OptimizerGroup(
                (self.restore if s.whole else _recurrent_part(self.restore),),
                lr=s.lr,
                optimizer=s.optimizer,
                weight_decay=s.weight_decay,
                schedule="cosine",
                warmup=s.warmup,
                clip=s.clip,
            )
        }

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        s = self.settings
        degraded, clear = frames_of(batch.degraded), frames_of(batch.clear)
        clips = restored_clips(self.restore, degraded, batch.moves if s.follow else None)
        restored, truth = clips.flatten(0, 1), clear.flatten(0, 1)
        terms: dict[str, Tensor] = {}
        if s.charbonnier:
            terms["charbonnier"] = s.charbonnier * charbonnier(restored, truth)
        if s.ssim:
            terms["ssim"] = s.ssim * ssim_loss(restored, truth)
        if s.frequency:
            terms["frequency"] = s.frequency * frequency(restored, truth, norm="ortho")
        if s.psnr:
            terms["psnr"] = s.psnr * negative_psnr(restored, truth, s.psnr_ceiling)
        if s.steadiness and clips.shape[1] > 1:
            change, true_change = (one.diff(dim=1).flatten(0, 1) for one in (clips, clear))
            terms["steadiness"] = s.steadiness * charbonnier(change, true_change)
        if s.flicker and clips.shape[1] > 1:
            change, true_change = (one.mean((3, 4)).diff(dim=1) for one in (clips, clear))
            terms["flicker"] = s.flicker * l1(change, true_change)
        update("generator", sum_terms(terms))
        return terms

    def preview(self, network: nn.Module, degraded: Tensor) -> Tensor:
        return strips_of(restored_clips(network, frames_of(degraded)))

    def restorer_network(self) -> nn.Module:
        return self.restore


def frames_of(strips: Tensor) -> Tensor:
    """N x 3 x T S x S -> N x T x 3 x S x S. Raises BadSettings if T is not a whole number."""
    height, side = strips.shape[-2:]
    if height % side:
        raise BadSettings(f"a strip of {side} x {height} pixels is not a sequence of square frames: set data.frames")
    return torch.stack(torch.split(strips, side, 2), 1)


def strips_of(clips: Tensor) -> Tensor:
    """N x T x 3 x S x S -> N x 3 x T S x S."""
    return torch.cat(clips.unbind(1), 2)


def restored_clips(network: nn.Module, clips: Tensor, moves: Tensor | None = None) -> Tensor:
    """B x T x 3 x S x S -> the same, by a recurrent network or frame by frame; `moves`: B x T x 2 x 3, or None."""
    recurrent: Any = getattr(network, "clip", None)
    if recurrent is None:
        return torch.unflatten(padded(network, clips.flatten(0, 1)), 0, clips.shape[:2])
    restored: Tensor = recurrent(clips, moves=moves)
    return restored


def _recurrent_part(network: nn.Module) -> nn.Module:
    memory = getattr(getattr(network, "maps_module", None), "memory", None)
    if not isinstance(memory, nn.Module):
        raise BadSettings("recipe.whole is false, but this generator has no recurrent part: use recurrent_maps")
    return memory
