"""A folder of clean training data, and for each kind of finding a function that puts one fault into it."""

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
    """A picture with detail of every size, different for every number."""
    rng = np.random.default_rng(number)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 12, 36, 108):
        waves = rng.normal(size=(cells * height // width + 1, cells, 3)).astype(np.float32)
        total += cv2.resize(waves, (width, height), interpolation=cv2.INTER_CUBIC)
    return (127 + 35 * total).clip(0, 255).astype(np.uint8)


def hazed(clear: np.ndarray, transmission: float = 0.4) -> np.ndarray:
    return np.asarray(clear * transmission + 200 * (1 - transmission)).round().astype(np.uint8)


def write_pairs(folder: Path, numbers: range) -> Path:
    for number in numbers:
        write_photo(folder / "clear" / f"{number}.png", texture(number))
        write_photo(folder / "hazy" / f"{number}.png", hazed(texture(number)))
    return folder


def write_clean_data(folder: Path) -> Path:
    """A train and a test set of pairs, and two more clear photos."""
    write_pairs(folder / "train" / "set", range(4))
    write_pairs(folder / "test" / "set", range(4, 6))
    for number in (6, 7):
        write_photo(folder / "train" / "photos" / f"{number}.jpg", texture(number))
    return folder


def image(number: int) -> Image.Image:
    return Image.fromarray(texture(number))


def save(picture: Image.Image, path: Path, **settings: object) -> Path:
    picture.save(path, **settings)
    return path


# Each function puts one fault into the folder, and returns the file to be named.


def unreadable(data: Path) -> Path:
    path = data / "train" / "set" / "hazy" / "1.png"
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def hazy(name: str, pixels: Callable[[], np.ndarray]) -> Callable[[Path], Path]:
    return lambda data: write_photo(data / "train" / "set" / "hazy" / name, pixels())


def photo(name: str, pixels: Callable[[], np.ndarray]) -> Callable[[Path], Path]:
    return lambda data: write_photo(data / "train" / "photos" / name, pixels())


def saved(name: str, picture: Callable[[], Image.Image], **settings: object) -> Callable[[Path], Path]:
    return lambda data: save(picture(), data / "train" / "photos" / name, **settings)


def different(data: Path) -> Path:
    write_photo(data / "train" / "set" / "hazy" / "2.png", hazed(texture(3)))
    return write_photo(data / "train" / "set" / "hazy" / "3.png", hazed(texture(2)))


def shifted(data: Path) -> Path:
    wide = texture(50, HEIGHT + 2, WIDTH + 3)
    write_photo(data / "train" / "set" / "clear" / "50.png", wide[:-2, :-3])
    return write_photo(data / "train" / "set" / "hazy" / "50.png", hazed(wide[2:, 3:]))


def mirrored_copy() -> np.ndarray:
    half = cv2.resize(texture(5), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(half[:, ::-1])


def view(data: Path) -> Path:
    wide = texture(40, HEIGHT + 20, WIDTH + 20)
    write_photo(data / "test" / "photos" / "then.png", wide[:HEIGHT, :WIDTH])
    later = wide[4 : HEIGHT + 4, 3 : WIDTH + 3] // 2
    later[60:100, 20:70] = texture(41)[:40, :50]
    return write_photo(data / "train" / "photos" / "now.png", later)


def with_border() -> np.ndarray:
    return cv2.copyMakeBorder(texture(30), 8, 8, 6, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def with_alpha(alpha: Callable[[], Image.Image | int]) -> Image.Image:
    picture = image(33)
    picture.putalpha(alpha())
    return picture


def one_sided(data: Path) -> Path:
    return write_photo(data / "more" / "hazy" / "1.png", hazed(texture(36))).parent


def trimmed(data: Path) -> Path:
    whole = texture(43, HEIGHT + 20, WIDTH + 20)
    write_photo(data / "train" / "set" / "hazy" / "43.png", hazed(whole[10:-10, 10:-10]))
    return write_photo(data / "train" / "set" / "clear" / "43.png", whole)


FAULTS: dict[str, Callable[[Path], Path]] = {
    "unreadable": unreadable,
    "unpaired": hazy("99.png", lambda: texture(99)),
    "size": hazy("1.png", lambda: hazed(cv2.resize(texture(1), (96, 72)))),
    "different": different,
    "mirrored": hazy("2.png", lambda: hazed(texture(2))[:, ::-1]),
    "leak": photo("small.jpg", mirrored_copy),
    "dissimilar": hazy("2.png", lambda: hazed(texture(99))),
    "shifted": shifted,
    "view": view,
    "copy": saved("again.jpg", lambda: image(0), quality=60),
    "same": hazy("2.png", lambda: texture(2)),
    "border": photo("framed.png", with_border),
    "blank": photo("blank.png", lambda: np.full((HEIGHT, WIDTH, 3), 90, np.uint8)),
    "grey": saved("grey.png", lambda: image(31).convert("L")),
    "cmyk": saved("inks.jpg", lambda: image(32).convert("CMYK")),
    "transparent": saved("holes.png", lambda: with_alpha(lambda: Image.fromarray(texture(34)[..., 0]))),
    "small": photo("tiny.png", lambda: texture(35, 60, 200)),
    "one-sided": one_sided,
    "alpha": saved("alpha.png", lambda: with_alpha(lambda: 255)),
    "palette": saved("palette.png", lambda: image(37).convert("P")),
    "16-bit": photo("deep.png", lambda: texture(38).astype(np.uint16) * 257),
    "pages": saved("pages.tif", lambda: image(39), save_all=True, append_images=[image(40)]),
    "misnamed": saved("jpeg.png", lambda: image(42), format="JPEG"),
    "trimmed": trimmed,
    "ignored": saved("picture.gif", lambda: image(44)),
}
