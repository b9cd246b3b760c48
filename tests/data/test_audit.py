"""The audit of a data folder: every kind of fault is found where it was made, and nothing is found where none was."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fairweather.data.audit import FINDING_KINDS, Finding, audit, check_before_training
from fairweather.data.image_matching import detail
from fairweather.errors import BadFolder
from fairweather.pairs import find_sets, pictures
from tests.data.conftest import write_photo
from tests.data.faults import (
    CROP,
    HEIGHT,
    MAKERS,
    WIDTH,
    grey,
    hazed,
    image,
    lay_data,
    save,
    shifted,
    size,
    texture,
    tiny,
    wrong,
)

FAST = {"unreadable", "unpaired", "size", "grey", "cmyk", "small", "one-sided", "alpha", "palette", "16-bit", "pages"}
FAST |= {"misnamed", "trimmed", "ignored"}
"""What --fast must find; it may name the others where a header tells as much."""


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return lay_data(tmp_path / "data")


def found(folder: Path, **settings: object) -> list[Finding]:
    return audit(folder, crop=CROP, **settings).findings  # type: ignore[arg-type]


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


def test_there_is_a_fault_of_every_kind() -> None:
    assert set(MAKERS) == set(FINDING_KINDS)


def test_a_clean_folder_is_clean(clean: Path) -> None:
    done = audit(clean, crop=CROP)
    assert done.findings == []
    assert (done.sets, done.photos, done.unpaired) == ({"test/set": 2, "train/set": 4}, 14, 2)
    assert audit(clean, crop=CROP, fast=True).findings == []


@pytest.mark.parametrize("kind", FINDING_KINDS)
def test_every_kind_is_found_and_nothing_else(kind: str, clean: Path) -> None:
    culprit = MAKERS[kind](clean)
    findings = found(clean)
    assert kinds(findings) == {kind}
    assert any(culprit in finding.files for finding in findings)


@pytest.mark.parametrize("kind", sorted(FAST - {"unreadable"}))
def test_the_fast_part_finds_what_headers_tell(kind: str, clean: Path) -> None:
    culprit = MAKERS[kind](clean)
    findings = found(clean, fast=True)
    assert kinds(findings) == {kind}
    assert any(culprit in finding.files for finding in findings)


@pytest.mark.parametrize("content", [b"", b"not a picture at all", b"GIF89a and so on", b"\x89PNG\r\n\x1a\nbroken"])
def test_files_that_are_no_pictures(content: bytes, clean: Path) -> None:
    path = clean / "train" / "photos" / "7.jpg"
    path.write_bytes(content)
    for fast in (True, False):
        (finding,) = found(clean, fast=fast)
        assert (finding.kind, finding.files) == ("unreadable", (path,))
        assert str(path) not in finding.what


def test_an_animation_cannot_be_read(clean: Path) -> None:
    path = save(image(1), clean / "train" / "photos" / "film.webp", save_all=True, append_images=[image(2)])
    (finding,) = found(clean)
    assert (finding.kind, finding.files) == ("unreadable", (path,))


def test_one_broken_clear_photo_leaves_the_rest_checked(clean: Path) -> None:
    culprit = shifted(clean)
    (clean / "train" / "set" / "clear" / "0.png").write_bytes(b"")
    findings = found(clean)
    assert [finding.kind for finding in findings] == ["unreadable", "shifted"]
    assert culprit in findings[1].files


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, -1), (2, 2), (-5, 3), (20, -7)])
@pytest.mark.parametrize("transmission", [0.5, 0.1])
def test_shifts_are_measured(right: int, down: int, transmission: float, clean: Path) -> None:
    whole = texture(60, HEIGHT + 40, WIDTH + 60)
    clear, moved = (whole[20 - y : 20 - y + HEIGHT, 30 - x : 30 - x + WIDTH] for x, y in ((0, 0), (right, down)))
    write_photo(clean / "train" / "set" / "clear" / "60.png", clear)
    write_photo(clean / "train" / "set" / "hazy" / "60.png", hazed(moved, transmission))
    (finding,) = found(clean)
    assert finding.kind == "shifted"
    assert f"{abs(right):.1f} px {'right' if right > 0 else 'left'}" in finding.what or right == 0
    assert f"{abs(down):.1f} px {'down' if down > 0 else 'up'}" in finding.what or down == 0


def test_detail_beside_a_blank_is_a_number() -> None:
    for number in (69, 75):  # where OpenCV's mean of squares was below zero
        photo = texture(number)
        photo[:, 90:] = 0
        assert np.isfinite(detail(photo)).all()


def test_half_a_pixel_is_no_shift(clean: Path) -> None:
    twice = texture(61, 2 * HEIGHT, 2 * WIDTH + 2)
    clear, moved = (
        cv2.resize(twice[:, x : x + 2 * WIDTH], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for x in (0, 1)
    )
    write_photo(clean / "train" / "set" / "clear" / "61.png", clear)
    write_photo(clean / "train" / "set" / "hazy" / "61.png", hazed(moved))
    assert found(clean) == []


def test_the_right_partner_is_named(clean: Path) -> None:
    wrong(clean)
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


def test_versions_of_one_scene_are_no_copies_but_twins_are(clean: Path) -> None:
    for haze in (1, 2):
        write_photo(clean / "train" / "set" / "hazy" / f"3_{haze}.png", hazed(texture(3), 0.3 * haze))
    assert found(clean) == []
    twin = write_photo(clean / "train" / "set" / "hazy" / "3_3.png", hazed(texture(3), 0.3))
    (finding,) = found(clean)
    assert (finding.kind, len(finding.files)) == ("copy", 2)
    assert twin in finding.files


def test_copies_are_one_group(clean: Path) -> None:
    for number, quality in enumerate((50, 70, 90)):
        save(image(0), clean / "train" / "photos" / f"again{number}.jpg", quality=quality)
    (finding,) = found(clean)
    assert (finding.kind, len(finding.files)) == ("copy", 4)


def test_two_folders_are_compared(clean: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    write_photo(other / "clear" / "x.png", texture(70))
    write_photo(other / "hazy" / "x.png", hazed(texture(70)))
    assert found(clean, against=other) == []
    save(image(70), clean / "train" / "photos" / "x.jpg", quality=80)
    (finding,) = found(clean, against=other)
    assert (finding.kind, finding.severity) == ("leak", "error")
    assert set(finding.files) == {clean / "train" / "photos" / "x.jpg", other / "clear" / "x.png"}


def test_disparity_maps_are_no_photos(clean: Path) -> None:
    path = write_photo(clean / "train" / "photos" / "6_disparity.png", texture(71)[..., 0])
    assert found(clean) == []
    path.write_bytes(b"")
    assert kinds(found(clean)) == {"unreadable"}


def test_a_sky_is_no_frame_but_a_letterbox_is(clean: Path) -> None:
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


def test_a_folder_without_pairs_and_one_that_is_none(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos" / "1.png", texture(1))
    assert found(tmp_path / "photos") == []
    with pytest.raises(BadFolder, match="nowhere"):
        audit(tmp_path / "nowhere")


def test_progress_reaches_the_end(clean: Path, tmp_path: Path) -> None:
    write_photo(tmp_path / "other" / "1.png", texture(80))
    told: list[tuple[int, int]] = []
    audit(clean, crop=CROP, against=tmp_path / "other", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (15, 15)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_training_is_told_before_it_decodes(clean: Path) -> None:
    def check() -> str:
        pairs = [pair for found in find_sets(clean).values() for pair in found]
        return check_before_training([str(clean)], pictures(clean), pairs, CROP)

    assert check() == ""
    grey(clean)
    tiny(clean)
    assert check().startswith("photos: 1 without colour, 1 smaller than the crop of 64; `fairweather check-data ")
    size(clean)
    with pytest.raises(BadFolder, match=r"cannot train on 1 of the .*1\.png.*96 x 72 .*fairweather check-data"):
        check()


def test_train_refuses_and_warns(clean: Path, caplog: pytest.LogCaptureFixture) -> None:
    from fairweather.recipes import RECIPES
    from fairweather.training.config import DataConfig
    from fairweather.training.dataloader import check_headers

    photos = str(clean / "train" / "photos")
    unpaired = DataConfig(degraded=photos, clear=photos)
    sources = ({"kind": "pairs", "path": "train/set"}, {"kind": "clear", "path": "train/photos"})
    mixture = DataConfig(folder=str(clean), sources=sources)
    paired = DataConfig(folder=str(clean))
    grey(clean)
    with caplog.at_level(logging.WARNING, "fairweather"):
        check_headers(paired, RECIPES["pix2pix"], CROP)  # its photos are in no pair
        assert not caplog.records
        check_headers(unpaired, RECIPES["cyclegan"], CROP, quiet=True)
        assert not caplog.records
        check_headers(unpaired, RECIPES["cyclegan"], CROP)
        check_headers(mixture, RECIPES["supervised"], CROP)
    assert len(caplog.records) == 2
    size(clean)
    check_headers(paired, RECIPES["cyclegan"], CROP)  # draws its sides independently
    for settings in (paired, mixture):
        with pytest.raises(BadFolder, match=r"1\.png"):
            check_headers(settings, RECIPES["supervised"], CROP)
