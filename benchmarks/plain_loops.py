"""Hand-written PyTorch training steps of every recipe, which benchmarks/training.py compares fairweather with.

They take the recipe's networks, weights and settings, and nothing else: losses are those of torch.nn.functional,
discriminators have `requires_grad` switched off while generators are updated, gradients are set to None, Adam is fused,
the forward pass runs under autocast and the backward pass outside of it. Each network is called as often and in the
same order as in the paper's public code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fairweather.losses import charbonnier, dark_channel_mask, frequency, ssim_loss, transmission_mask
from fairweather.recipes import Batch, Recipe
from fairweather.recipes.supervised import negative_psnr

Losses = dict[str, float]


class ImagePool:
    """A history of up to `size` generated photos; half of the queries return one from it."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        if self.size == 0:
            return images
        answer = []
        for image in images:
            if len(self.images) < self.size:
                self.images.append(image.clone())
                answer.append(image)
            elif torch.rand((), generator=self.generator) < 0.5:
                at = int(torch.randint(self.size, (), generator=self.generator))
                answer.append(self.images[at])
                self.images[at] = image.clone()
            else:
                answer.append(image)
        return torch.stack(answer)


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Disable gradients of these networks' weights."""
    for network in networks:
        network.requires_grad_(False)
    yield
    for network in networks:
        network.requires_grad_(True)


class PlainLoop:
    """Base of the loops: networks, autocast and optimizers."""

    def __init__(
        self, recipe: Recipe, rates: dict[str, float], *, dtype: torch.dtype, channels_last: bool, seed: int
    ) -> None:
        self.networks: Any = recipe
        self.settings: Any = recipe.settings  # type: ignore[attr-defined]
        self.rates, self.dtype = rates, dtype
        self.device = next(recipe.parameters()).device
        if channels_last:
            recipe.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(seed)
        self.pools = [ImagePool(getattr(self.settings, "pool", 0), generator) for _ in range(2)]
        self.prepare()

    def prepare(self) -> None:
        """Make the optimizers."""
        raise NotImplementedError

    def losses(self, degraded: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """One training step."""
        raise NotImplementedError

    def step(self, batch: Batch) -> Losses:
        """One training step, and its losses as numbers for the log."""
        degraded, clear = (
            side.to(self.device, memory_format=self.layout, non_blocking=True) for side in (batch.degraded, batch.clear)
        )
        return {name: value.item() for name, value in self.losses(degraded, clear).items()}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def adam(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
        betas = (self.settings.beta1, 0.999)
        return torch.optim.Adam(parameters, lr=self.rates[group], betas=betas, fused=True)

    def update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class PlainCycle(PlainLoop):
    """CycleGAN, ClarityGAN, CycleGAN-DeRain."""

    def prepare(self) -> None:
        n = self.networks
        self.generators = self.adam("generators", [*n.restore.parameters(), *n.degrade.parameters()])
        self.discriminators = self.adam(
            "discriminators", [*n.discriminator_clear.parameters(), *n.discriminator_degraded.parameters()]
        )

    def losses(self, degraded: Tensor, clear: Tensor) -> dict[str, Tensor]:
        n, s = self.networks, self.settings
        losses = {}
        with frozen(n.discriminator_clear, n.discriminator_degraded):
            with self.autocast():
                fake_clear, fake_degraded = n.restore(degraded), n.degrade(clear)
                again_degraded, again_clear = n.degrade(fake_clear), n.restore(fake_degraded)
                losses["adversarial_clear"] = against(n.discriminator_clear(fake_clear), 1.0)
                losses["adversarial_degraded"] = against(n.discriminator_degraded(fake_degraded), 1.0)
                losses["cycle_degraded"] = s.cycle * functional.l1_loss(again_degraded.float(), degraded)
                losses["cycle_clear"] = s.cycle * functional.l1_loss(again_clear.float(), clear)
                losses["identity_clear"] = s.identity * functional.l1_loss(n.restore(clear).float(), clear)
                losses["identity_degraded"] = s.identity * functional.l1_loss(n.degrade(degraded).float(), degraded)
                if (compare := getattr(n, "compare", None)) is not None:
                    losses["perceptual_degraded"] = s.perceptual * compare(again_degraded, degraded)
                    losses["perceptual_clear"] = s.perceptual * compare(again_clear, clear)
            self.update(self.generators, sum_of(losses.values()))

        shown_clear = self.pools[0].query(fake_clear.detach())
        shown_degraded = self.pools[1].query(fake_degraded.detach())
        with self.autocast():
            clear_game = against(n.discriminator_clear(clear), 1.0) + against(n.discriminator_clear(shown_clear), 0.0)
            degraded_game = against(n.discriminator_degraded(degraded), 1.0) + against(
                n.discriminator_degraded(shown_degraded), 0.0
            )
            losses["discriminator_clear"], losses["discriminator_degraded"] = 0.5 * clear_game, 0.5 * degraded_game
        self.update(self.discriminators, losses["discriminator_clear"] + losses["discriminator_degraded"])
        return losses


class PlainConditional(PlainLoop):
    """Base of pix2pix and HazeHeal."""

    def prepare(self) -> None:
        self.generator = self.adam("generator", self.networks.restore.parameters())
        self.discriminator = self.adam("discriminator", self.networks.discriminator.parameters())

    def learn_judge(self, degraded: Tensor, clear: Tensor, restored: Tensor, share: float) -> Tensor:
        n = self.networks
        with self.autocast():
            real = with_logits(n.discriminator(torch.cat([degraded, clear], dim=1)), 1.0)
            fake = with_logits(n.discriminator(torch.cat([degraded, restored.detach()], dim=1)), 0.0)
            loss = share * (real + fake)
        self.update(self.discriminator, loss)
        return loss


class PlainPix2Pix(PlainConditional):
    """pix2pix: the discriminator first."""

    def losses(self, degraded: Tensor, clear: Tensor) -> dict[str, Tensor]:
        n, s = self.networks, self.settings
        with self.autocast():
            restored = n.restore(degraded)
        judged = self.learn_judge(degraded, clear, restored, 0.5)
        losses = {}
        with frozen(n.discriminator):
            with self.autocast():
                losses["adversarial"] = with_logits(n.discriminator(torch.cat([degraded, restored], dim=1)), 1.0)
                losses["l1"] = s.l1 * functional.l1_loss(restored.float(), clear)
            self.update(self.generator, sum_of(losses.values()))
        return losses | {"discriminator": judged}


class PlainHazeHeal(PlainConditional):
    """HazeHeal: the generator first."""

    def losses(self, degraded: Tensor, clear: Tensor) -> dict[str, Tensor]:
        n, s = self.networks, self.settings
        losses = {}
        with frozen(n.discriminator):
            with self.autocast():
                restored = n.restore(degraded)
                if s.mask == "transmission":
                    mask = transmission_mask(degraded, clear, threshold=s.threshold)
                else:
                    mask = dark_channel_mask(degraded, patch=s.patch, threshold=s.threshold)
                losses["adversarial"] = with_logits(n.discriminator(torch.cat([degraded, restored], dim=1)), 1.0)
                losses["charbonnier"] = s.reconstruction * (1 - s.inside) * charbonnier(restored, clear)
                losses["haze_aware"] = s.reconstruction * s.inside * charbonnier(restored, clear, mask)
                if n.compare is not None:
                    losses["perceptual"] = s.perceptual * n.compare(restored, clear)
            self.update(self.generator, sum_of(losses.values()))
        return losses | {"discriminator": self.learn_judge(degraded, clear, restored, 1.0)}


class PlainSupervised(PlainLoop):
    """One network, pairs, AdamW, clipped gradients and a moving average of the weights."""

    def prepare(self) -> None:
        s, network = self.settings, self.networks.restore
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.rates["generator"], weight_decay=s.weight_decay, fused=True
        )
        self.average = torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(s.ema), use_buffers=False
        )

    def losses(self, degraded: Tensor, clear: Tensor) -> dict[str, Tensor]:
        s, network = self.settings, self.networks.restore
        losses = {}
        with self.autocast():
            restored = network(degraded)
            if s.charbonnier:
                losses["charbonnier"] = s.charbonnier * charbonnier(restored, clear)
            if s.ssim:
                losses["ssim"] = s.ssim * ssim_loss(restored, clear)
            if s.frequency:
                losses["frequency"] = s.frequency * frequency(restored, clear, norm="ortho")
            if s.psnr:
                losses["psnr"] = s.psnr * negative_psnr(restored, clear, s.psnr_ceiling)
        self.optimizer.zero_grad(set_to_none=True)
        sum_of(losses.values()).backward()  # type: ignore[no-untyped-call]
        if s.clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), s.clip)
        self.optimizer.step()
        if s.ema:
            self.average.update_parameters(network)
        return losses


def against(scores: Tensor, wanted: float) -> Tensor:
    """Least squares."""
    return functional.mse_loss(scores.float(), torch.full_like(scores, wanted, dtype=torch.float32))


def with_logits(scores: Tensor, wanted: float) -> Tensor:
    """Binary cross-entropy with the label `wanted`, 0 or 1.

    Not functional.binary_cross_entropy_with_logits, which rounds its last bit otherwise than fairweather's formula: ten
    steps of pix2pix (Adam's first steps go by the gradients' signs, batch norm sees four values) make 3e-3 of that, and
    comparing the two sides' losses would say nothing.
    """
    return functional.softplus(scores.float() * (1 - 2 * wanted)).mean()


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    first, *others = losses
    for other in others:
        first = first + other
    return first


PLAIN: dict[str, Callable[..., PlainLoop]] = {
    "cyclegan": PlainCycle,
    "pix2pix": PlainPix2Pix,
    "claritygan": PlainCycle,
    "hazeheal": PlainHazeHeal,
    "derain": PlainCycle,
    "supervised": PlainSupervised,
}
