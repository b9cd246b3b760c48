"""A folder with nothing wrong in it, and what spoils it: for each kind that the audit knows, a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.data.conftest import write_photo

CROP = 64
HEIGHT, WIDTH = 144, 192


def texture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A picture with detail of every size, another one for every number."""
    rng = np.random.default_rng(number)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 12, 36, 108):
        waves = rng.normal(size=(cells * height // width + 1, cells, 3)).astype(np.float32)
        total += cv2.resize(waves, (width, height), interpolation=cv2.INTER_CUBIC)
    return (127 + 35 * total).clip(0, 255).astype(np.uint8)


def hazed(clear: np.ndarray, transmission: float = 0.4) -> np.ndarray:
    return (clear * transmission + 200 * (1 - transmission)).round().astype(np.uint8)


def lay_pairs(folder: Path, numbers: range) -> Path:
    for number in numbers:
        write_photo(folder / "clear" / f"{number}.png", texture(number))
        write_photo(folder / "hazy" / f"{number}.png", hazed(texture(number)))
    return folder


def lay_data(folder: Path) -> Path:
    """A train and a test set of pairs, and clear photos beside them."""
    lay_pairs(folder / "train" / "set", range(4))
    lay_pairs(folder / "test" / "set", range(4, 6))
    for number in range(6, 8):
        write_photo(folder / "train" / "photos" / f"{number}.jpg", texture(number))
    return folder


def save(image: Image.Image, path: Path, **settings: object) -> Path:
    image.save(path, **settings)
    return path


def image(number: int) -> Image.Image:
    return Image.fromarray(texture(number))


# Each makes one fault in the clean folder, and returns the file that must be named.


def unreadable(data: Path) -> Path:
    path = data / "train" / "set" / "hazy" / "1.png"
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def partner(data: Path) -> Path:
    return write_photo(data / "train" / "set" / "hazy" / "99.png", texture(99))


def size(data: Path) -> Path:
    return write_photo(data / "train" / "set" / "hazy" / "1.png", hazed(cv2.resize(texture(1), (96, 72))))


def wrong(data: Path) -> Path:
    write_photo(data / "train" / "set" / "hazy" / "2.png", hazed(texture(3)))
    return write_photo(data / "train" / "set" / "hazy" / "3.png", hazed(texture(2)))


def mirrored(data: Path) -> Path:
    return write_photo(data / "train" / "set" / "hazy" / "2.png", hazed(texture(2))[:, ::-1])


def unlike(data: Path) -> Path:
    return write_photo(data / "train" / "set" / "hazy" / "2.png", hazed(texture(99)))


def shifted(data: Path) -> Path:
    wide = texture(50, HEIGHT + 2, WIDTH + 3)
    write_photo(data / "train" / "set" / "clear" / "50.png", wide[:-2, :-3])
    return write_photo(data / "train" / "set" / "hazy" / "50.png", hazed(wide[2:, 3:]))


def leak(data: Path) -> Path:
    half = cv2.resize(texture(5), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    return write_photo(data / "train" / "photos" / "small.jpg", np.ascontiguousarray(half[:, ::-1]))


def view(data: Path) -> Path:
    again = texture(40, HEIGHT + 20, WIDTH + 20)
    write_photo(data / "test" / "photos" / "then.png", again[:HEIGHT, :WIDTH])
    later = again[4 : HEIGHT + 4, 3 : WIDTH + 3] // 2
    later[60:100, 20:70] = texture(41)[:40, :50]
    return write_photo(data / "train" / "photos" / "now.png", later)


def copy(data: Path) -> Path:
    return save(image(0), data / "train" / "photos" / "again.jpg", quality=60)


def same(data: Path) -> Path:
    return write_photo(data / "train" / "set" / "hazy" / "2.png", texture(2))


def border(data: Path) -> Path:
    framed = cv2.copyMakeBorder(texture(30), 8, 8, 6, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return write_photo(data / "train" / "photos" / "framed.png", framed)


def blank(data: Path) -> Path:
    return write_photo(data / "train" / "photos" / "blank.png", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def grey(data: Path) -> Path:
    return save(image(31).convert("L"), data / "train" / "photos" / "grey.png")


def inks(data: Path) -> Path:
    return save(image(32).convert("CMYK"), data / "train" / "photos" / "inks.jpg")


def see_through(data: Path) -> Path:
    photo = image(33)
    photo.putalpha(Image.fromarray(texture(34)[..., 0]))
    return save(photo, data / "train" / "photos" / "holes.png")


def alpha(data: Path) -> Path:
    photo = image(33)
    photo.putalpha(255)
    return save(photo, data / "train" / "photos" / "alpha.png")


def tiny(data: Path) -> Path:
    return write_photo(data / "train" / "photos" / "tiny.png", texture(35, 60, 200))


def lonely(data: Path) -> Path:
    return write_photo(data / "more" / "hazy" / "1.png", hazed(texture(36))).parent


def palette(data: Path) -> Path:
    return save(image(37).convert("P"), data / "train" / "photos" / "palette.png")


def deep(data: Path) -> Path:
    return write_photo(data / "train" / "photos" / "deep.png", texture(38).astype(np.uint16) * 257)


def pages(data: Path) -> Path:
    path = data / "train" / "photos" / "pages.tif"
    return save(image(39), path, save_all=True, append_images=[image(40)])


def misnamed(data: Path) -> Path:
    return save(image(42), data / "train" / "photos" / "jpeg.png", format="JPEG")


def trimmed(data: Path) -> Path:
    whole = texture(43, HEIGHT + 20, WIDTH + 20)
    write_photo(data / "train" / "set" / "hazy" / "43.png", hazed(whole[10:-10, 10:-10]))
    return write_photo(data / "train" / "set" / "clear" / "43.png", whole)


def ignored(data: Path) -> Path:
    return save(image(44), data / "train" / "photos" / "picture.gif")


MAKERS: dict[str, Callable[[Path], Path]] = {
    **{maker.__name__: maker for maker in (unreadable, size, mirrored, leak, shifted, view)},
    **{maker.__name__: maker for maker in (copy, same, border, blank, grey, alpha, palette)},
    **{maker.__name__: maker for maker in (pages, misnamed, trimmed, ignored)},
    **{"unpaired": partner, "different": wrong, "dissimilar": unlike, "cmyk": inks, "transparent": see_through},
    **{"small": tiny, "one-sided": lonely, "16-bit": deep},
}
