"""The audit of a data folder: every kind of fault is found in its place, and nothing is found in clean data."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fairweather.data.audit import FINDING_KINDS, Finding, audit, check_before_training, read_pixels
from fairweather.data.image_matching import detail, relation
from fairweather.errors import BadFolder
from fairweather.pairs import find_sets, pictures
from tests.data.conftest import write_photo
from tests.data.faults import CROP, FAULTS, HEIGHT, WIDTH, hazed, image, save, texture, write_clean_data

FAST = {
    *("unreadable", "unpaired", "size", "grey", "cmyk", "small", "one-sided", "alpha", "palette", "16-bit", "pages"),
    *("misnamed", "trimmed", "ignored"),
}
"""Kinds that headers show."""


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_clean_data(tmp_path / "data")


def found(folder: Path, **settings: object) -> list[Finding]:
    return audit(folder, crop=CROP, **settings).findings  # type: ignore[arg-type]


def test_clean_data_is_clean(clean: Path) -> None:
    result = audit(clean, crop=CROP)
    assert result.findings == []
    assert (result.sets, result.photos, result.unpaired) == ({"test/set": 2, "train/set": 4}, 14, 2)
    assert set(FAULTS) == set(FINDING_KINDS)


@pytest.mark.parametrize("kind", FINDING_KINDS)
def test_every_kind_of_fault_is_found_alone(kind: str, clean: Path) -> None:
    culprit = FAULTS[kind](clean)
    for fast in (False, True) if kind in FAST - {"unreadable"} else (False,):
        findings = found(clean, fast=fast)
        assert {finding.kind for finding in findings} == {kind}
        assert any(culprit in finding.files for finding in findings)
        assert set(findings[0].as_dict()) == {"kind", "severity", "files", "what", "remedy"}


def test_broken_files_are_findings_and_the_rest_is_checked(clean: Path) -> None:
    photos = clean / "train" / "photos"
    culprit = FAULTS["shifted"](clean)
    broken = [write_photo(photos / f"{n}.jpg", texture(n)) for n in range(90, 94)]
    contents = [b"", b"not a picture at all", b"GIF89a and so on", b"\x89PNG\r\n\x1a\nbroken"]
    for path, content in zip(broken, contents, strict=True):
        path.write_bytes(content)
    broken.append(save(image(1), photos / "video.webp", save_all=True, append_images=[image(2)]))
    broken.append(clean / "train" / "set" / "clear" / "0.png")
    broken[-1].write_bytes(b"")
    for fast in (True, False):
        findings = [one for one in found(clean, fast=fast) if one.kind != "shifted"]
        assert {one.kind for one in findings} == {"unreadable"}
        assert sorted(path for one in findings for path in one.files) == sorted(broken)
        assert not any(str(one.files[0]) in one.what for one in findings)
    (shifted,) = (one for one in found(clean) if one.kind == "shifted")
    assert culprit in shifted.files


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, -1), (-5, 3), (20, -7)])
@pytest.mark.parametrize("transmission", [0.5, 0.1])
def test_shifts_are_measured(right: int, down: int, transmission: float) -> None:
    whole = texture(60, HEIGHT + 40, WIDTH + 60)
    clear, moved = (whole[20 - y : 20 - y + HEIGHT, 30 - x : 30 - x + WIDTH] for x, y in ((0, 0), (right, down)))
    result = relation(hazed(moved, transmission), np.ascontiguousarray(clear))
    assert result.shifted
    assert (result.right, result.down) == pytest.approx((right, down), abs=0.06)


def test_half_a_pixel_is_not_a_shift_and_detail_is_finite() -> None:
    twice = texture(61, 2 * HEIGHT, 2 * WIDTH + 2)
    clear, moved = (
        cv2.resize(twice[:, x : x + 2 * WIDTH], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for x in (0, 1)
    )
    assert not relation(hazed(moved), clear).shifted
    for number in (69, 75):  # where OpenCV's mean of squares was below zero
        photo = texture(number)
        photo[:, 90:] = 0
        assert np.isfinite(detail(photo)).all()


@pytest.mark.parametrize("name", ["nh_haze", "o_haze", "rain100", "sots_outdoor"])
def test_shifts_and_flips_of_real_pairs(name: str, shared_data: Path) -> None:
    (_, pairs), *_ = find_sets(shared_data / "train" / name).items()
    for pair in pairs[:2]:
        degraded, clear = read_pixels(pair.degraded), read_pixels(pair.clear)
        assert not relation(degraded, clear).shifted
        result = relation(degraded[:, 1:], clear[:, :-1])
        assert result.shifted
        assert (result.right, result.down) == pytest.approx((-1, 0), abs=0.3)
        assert relation(degraded[:, ::-1], clear).flip == "mirrored"


def test_the_right_partner_is_named(clean: Path) -> None:
    FAULTS["different"](clean)
    findings = found(clean)
    assert len(findings) == 2
    assert str(clean / "train" / "set" / "clear" / "3.png") in findings[0].what


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda photo: cv2.resize(photo, (WIDTH // 2, HEIGHT // 2)), "scaled by 2"),
        (lambda photo: photo[10:-30, 20:-4], r"crop of the other, at \(20, 10\)"),
        (lambda photo: np.rot90(photo), "rotated by 90"),
        (lambda photo: cv2.resize(photo, (WIDTH, HEIGHT - 20)), "another shape"),
    ],
)
def test_two_sizes_are_explained(change: Callable[[np.ndarray], np.ndarray], words: str, clean: Path) -> None:
    write_photo(clean / "train" / "set" / "hazy" / "1.png", np.ascontiguousarray(change(hazed(texture(1)))))
    (finding,) = found(clean)
    assert finding.kind == "size"
    assert re.search(words, finding.what)


def test_versions_of_one_scene_are_not_copies_but_equal_ones_are(clean: Path) -> None:
    for haze in (1, 2):
        write_photo(clean / "train" / "set" / "hazy" / f"3_{haze}.png", hazed(texture(3), 0.3 * haze))
    write_photo(clean / "train" / "photos" / "6_disparity.png", texture(71)[..., 0])  # not a photo
    assert found(clean) == []
    equal = write_photo(clean / "train" / "set" / "hazy" / "3_3.png", hazed(texture(3), 0.3))
    (finding,) = found(clean)
    assert (finding.kind, len(finding.files)) == ("copy", 2)
    assert equal in finding.files


def test_all_copies_of_a_photo_are_one_finding(clean: Path) -> None:
    for number, quality in enumerate((50, 70, 90)):
        save(image(0), clean / "train" / "photos" / f"again{number}.jpg", quality=quality)
    (finding,) = found(clean)
    assert (finding.kind, len(finding.files)) == ("copy", 4)


def test_two_folders_are_compared_with_progress(clean: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    write_photo(other / "clear" / "x.png", texture(70))
    write_photo(other / "hazy" / "x.png", hazed(texture(70)))
    assert found(clean, against=other) == []
    save(image(70), clean / "train" / "photos" / "x.jpg", quality=80)
    calls: list[tuple[int, int]] = []
    (finding,) = found(clean, against=other, progress=lambda done, total: calls.append((done, total)))
    assert (finding.kind, finding.severity) == ("leak", "error")
    assert set(finding.files) == {clean / "train" / "photos" / "x.jpg", other / "clear" / "x.png"}
    assert calls[-1] == (17, 17)
    assert calls == sorted(calls)


def test_a_white_sky_is_not_a_border_but_letterbox_bars_are(clean: Path) -> None:
    photo = texture(72)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    photo[rows < 30 + 10 * np.sin(columns / 15)] = 255
    path = write_photo(clean / "train" / "photos" / "sky.png", photo)
    assert found(clean) == []
    photo = texture(72)
    photo[:17] = photo[-17:] = 0
    write_photo(path, photo)
    (finding,) = found(clean)
    assert (finding.kind, finding.what) == ("border", "top 17, bottom 17 px")


def test_a_folder_without_pairs_and_a_missing_one(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos" / "1.png", texture(1))
    assert found(tmp_path / "photos") == []
    with pytest.raises(BadFolder, match="nowhere"):
        audit(tmp_path / "nowhere")


def test_headers_are_checked_before_training(clean: Path) -> None:
    def check() -> str:
        pairs = [pair for one in find_sets(clean).values() for pair in one]
        return check_before_training([str(clean)], pictures(clean), pairs, CROP)

    assert check() == ""
    for kind in ("grey", "small"):
        FAULTS[kind](clean)
    assert check().startswith("photos: 1 without colour, 1 smaller than the crop of 64; `fairweather check-data ")
    FAULTS["size"](clean)
    with pytest.raises(BadFolder, match=r"cannot train on 1 of the .*1\.png.*96 x 72 .*fairweather check-data"):
        check()


def test_train_rejects_and_warns(clean: Path, caplog: pytest.LogCaptureFixture) -> None:
    from fairweather.recipes import RECIPES
    from fairweather.training.config import DataConfig
    from fairweather.training.dataloader import check_headers

    photos = str(clean / "train" / "photos")
    unpaired = DataConfig(degraded=photos, clear=photos)
    sources = [{"kind": "pairs", "path": "train/set"}, {"kind": "clear", "path": "train/photos"}]
    mixture = DataConfig(folder=str(clean), sources=sources)
    paired = DataConfig(folder=str(clean))
    FAULTS["grey"](clean)
    with caplog.at_level(logging.WARNING, "fairweather"):
        check_headers(paired, RECIPES["pix2pix"], CROP)  # its photos are in no pair
        assert not caplog.records
        check_headers(unpaired, RECIPES["cyclegan"], CROP, quiet=True)
        assert not caplog.records
        check_headers(unpaired, RECIPES["cyclegan"], CROP)
        check_headers(mixture, RECIPES["supervised"], CROP)
    assert len(caplog.records) == 2
    FAULTS["size"](clean)
    check_headers(paired, RECIPES["cyclegan"], CROP)  # draws its sides independently
    for settings in (paired, mixture):
        with pytest.raises(BadFolder, match=r"1\.png"):
            check_headers(settings, RECIPES["supervised"], CROP)


def test_a_rotated_tiff_has_the_size_of_its_upright_picture(clean: Path) -> None:
    """EXIF orientation 6: stored on its side, rotated by 90 degrees when read."""
    path = clean / "train" / "set" / "hazy" / "1.png"
    path.unlink()
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(hazed(texture(1)))))
    lying.save(path.with_suffix(".tif"), tiffinfo={274: 6})
    for fast in (False, True):
        assert found(clean, fast=fast) == []
    pairs = find_sets(clean / "train")["set"]
    assert check_before_training([str(clean)], pictures(clean), pairs, CROP) == ""
