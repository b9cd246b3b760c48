"""CycleGAN-DeRain: CycleGAN with U-Nets, for rain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fairweather.recipes.cyclegan import CycleGAN


class Derain(CycleGAN):
    """The public project CycleGAN-DeRain: CycleGAN's objective and settings (Zhu et al., ICCV 2017) with U-Nets as
    generators.

    Rain is thin and bright, and a U-Net's outermost skip passes every other pixel on unchanged. The U-Net is pix2pix's
    without dropout, which would blur the reconstruction; `multipath_unet` is the project's other design. Its batch norm
    sees degraded, clear and generated photos in turn, so its running statistics mix the domains: they are recalibrated
    on degraded photos before export. The generator argument `norm = "instance"` avoids that.

    Terms: CycleGAN's.
    """

    generator: ClassVar[str] = "unet"
    arguments: ClassVar[Mapping[str, Any]] = {"dropout": 0.0}
    weather: ClassVar[str] = "rain"
