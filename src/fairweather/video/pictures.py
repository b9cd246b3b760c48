"""Films that are pictures: a folder of frames, and animated WebP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fairweather.errors import BadFolder, BadImage
from fairweather.images import SUFFIXES, read
from fairweather.video.formats import Track
from fairweather.video.frames import Frame

if TYPE_CHECKING:
    from av import Packet


class FrameFolder:
    """A folder whose pictures are the frames of one film, in the order of their names (2 before 10)."""

    live = False

    def __init__(self, folder: Path, rate: Fraction) -> None:
        self.name = str(folder)
        self.files = sorted(
            (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "."),
            key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)],
        )
        if not self.files:
            raise BadFolder(f"{folder}: there are no pictures in this folder; looked for {', '.join(sorted(SUFFIXES))}")
        first = read(self.files[0]).pixels
        self.track = Track(
            width=first.shape[1],
            height=first.shape[0],
            time_base=1 / rate,
            rate=rate,
            codec="png",
            pixel_format="rgb48le" if first.dtype == np.uint16 else "rgb24",
            frames=len(self.files),
        )

    def items(self) -> Iterator[Frame | Packet]:
        """See Source. Raises BadImage for a picture that cannot be read or is of another size or depth."""
        shape = (self.track.height, self.track.width, 3)
        for number, file in enumerate(self.files):
            photo = read(file)
            if photo.pixels.shape != shape or (photo.pixels.dtype == np.uint16) != self.track.deep:
                found = f"{photo.pixels.shape[1]} x {photo.pixels.shape[0]} {photo.pixels.dtype}"
                raise BadImage(
                    f"{file}: {found} is not the size and depth of the first frame, {self.files[0].name}; "
                    "take it out of the folder"
                )
            yield Frame(photo.pixels, number, 1, photo=photo)

    def close(self) -> None:
        pass


class AnimatedWebP:
    """An animated WebP, which FFmpeg does not read; Pillow does, frame by frame."""

    live = False

    def __init__(self, path: Path) -> None:
        from PIL import Image

        self.name = str(path)
        try:
            self._image = Image.open(path)
            self._image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise BadImage(f"{path}: cannot be read as an animated WebP ({error}); get a whole copy") from error
        count = getattr(self._image, "n_frames", 1)
        self.track = Track(
            width=self._image.width,
            height=self._image.height,
            time_base=Fraction(1, 1000),
            rate=None,
            codec="webp",
            pixel_format="rgb24",
            frames=count,
        )

    def items(self) -> Iterator[Frame | Packet]:
        """See Source."""
        time = 0
        for number in range(self.track.frames or 0):
            try:
                self._image.seek(number)
                shown = np.asarray(self._image.convert("RGBA"))
            except (OSError, EOFError, SyntaxError) as error:
                raise BadImage(f"{self.name}: is damaged at frame {number + 1} ({error}); get a whole copy") from error
            duration = max(1, int(self._image.info.get("duration", 100)))
            alpha = None if shown[..., 3].min() == 255 else shown[..., 3]
            yield Frame(np.ascontiguousarray(shown[..., :3]), time, duration, alpha)
            time += duration

    def close(self) -> None:
        self._image.close()
