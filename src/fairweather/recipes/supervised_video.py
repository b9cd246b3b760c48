"""Paired regression on clips: each frame is compared with its truth, and its change with the truth's own change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators import padded
from fairweather.losses import charbonnier, frequency, l1, ssim_loss
from fairweather.recipes.base import Batch, Build, OptimizerGroup, Recipe, Update, sum_terms
from fairweather.recipes.supervised import negative_psnr


@dataclass(frozen=True)
class SupervisedVideoSettings:
    """Weights and optimizer. A term of weight zero is neither computed nor logged."""

    charbonnier: float = 1.0
    """Weight of the Charbonnier difference (Lai et al., LapSRN, CVPR 2017), over all frames."""
    ssim: float = 0.05
    """Weight of 1 - SSIM."""
    frequency: float = 0.05
    """Weight of the L1 difference of orthonormal Fourier transforms."""
    psnr: float = 0.01
    """Weight of the negative PSNR in dB, the mean over frames."""
    psnr_ceiling: float = 38.0
    """PSNR in dB beyond which that term hardly rewards a frame."""
    steadiness: float = 1.0
    """Weight of the Charbonnier difference between a restored clip's change from frame to frame and the truth's own:
    an error that stays costs nothing here, one that comes and goes does (the short-term loss of Lai et al., ECCV 2018,
    with the truth in the place of optical flow)."""
    flicker: float = 0.0
    """Weight of the same of the frames' mean colours, as an L1 difference: a picture that pulsates as a whole by half a
    level of 255 is seen, and is little to a difference of pixels."""
    whole: bool = True
    """Whether all of the network learns; without, its memory alone does, and what it says of a single frame stays."""
    follow: bool = True
    """Whether the memory is carried along with the camera's motion, as films carry it along the motion they find."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon, as in `supervised`."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    warmup: float = 0.02
    """Share of the run in which the learning rate climbs; afterwards half a cosine to zero."""
    clip: float | None = 1.0
    """Largest gradient norm; None leaves gradients as they are."""
    ema: float = 0.99
    """Decay of the moving average of the weights that ships; 0 ships the last weights."""


class SupervisedVideo(Recipe):
    """One generator, clips with their truth, and a weighed sum of differences in space and in time.

    A clip comes as a strip: N x 3 x T S x S, its T square frames one below another (`data.frames`). A generator with a
    memory (a method `clip`) sees the frames of a clip in their order, any other one sees each by itself.
    Terms: `charbonnier`, `ssim`, `frequency`, `psnr`, each where its weight is not zero; where T > 1, `steadiness` and
    `flicker`, too.
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
                (self.restore if s.whole else _memory(self.restore),),
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
            change, own = (one.diff(dim=1).flatten(0, 1) for one in (clips, clear))
            terms["steadiness"] = s.steadiness * charbonnier(change, own)
        if s.flicker and clips.shape[1] > 1:
            mean, true = (one.mean((3, 4)).diff(dim=1) for one in (clips, clear))
            terms["flicker"] = s.flicker * l1(mean, true)
        update("generator", sum_terms(terms))
        return terms

    def preview(self, network: nn.Module, degraded: Tensor) -> Tensor:
        return strips_of(restored_clips(network, frames_of(degraded)))

    def restorer_network(self) -> nn.Module:
        return self.restore


def frames_of(strips: Tensor) -> Tensor:
    """N x 3 x T S x S -> N x T x 3 x S x S. Raises BadSettings where these are no whole squares."""
    height, side = strips.shape[-2:]
    if height % side:
        raise BadSettings(
            f"a strip of {side} x {height} pixels holds no whole number of square frames: set data.frames"
        )
    return torch.stack(torch.split(strips, side, 2), 1)


def strips_of(clips: Tensor) -> Tensor:
    """N x T x 3 x S x S -> N x 3 x T S x S."""
    return torch.cat(clips.unbind(1), 2)


def restored_clips(network: nn.Module, clips: Tensor, moves: Tensor | None = None) -> Tensor:
    """B x T x 3 x S x S -> the same, by a network with a memory or frame by frame; `moves`: B x T x 2 x 3, or None."""
    through: Any = getattr(network, "clip", None)
    if through is None:
        return torch.unflatten(padded(network, clips.flatten(0, 1)), 0, clips.shape[:2])
    restored: Tensor = through(clips, moves=moves)
    return restored


def _memory(network: nn.Module) -> nn.Module:
    memory = getattr(getattr(network, "maps_module", None), "memory", None)
    if not isinstance(memory, nn.Module):
        raise BadSettings(
            "recipe.whole is off, so the memory alone would update, and this generator has none: take sequence"
        )
    return memory
