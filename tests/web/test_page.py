"""The page's parts: all in the package, nothing from elsewhere, every model on offer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from fairweather import model_folder
from fairweather.errors import BadSettings, UnknownName
from fairweather.web import uploads
from tests.architecture.imports import SOURCE
from tests.conftest import ROOT

WEB = SOURCE / "web"


def test_the_examples_are_those_of_the_repository_and_may_be_given_on() -> None:
    from fairweather.web.storage import tree_size

    photos = sorted(path for path in (WEB / "examples").iterdir() if path.suffix != ".md")
    terms, origin = (WEB / "examples" / "TERMS.md").read_text(), (ROOT / "examples" / "README.md").read_text()
    assert len(photos) >= 4
    for photo in photos:
        assert photo.read_bytes() == (ROOT / "examples" / photo.name).read_bytes()
        row = next(line for line in origin.splitlines() if f"`{photo.name}`" in line)
        assert row.split("|")[4].strip() in ("free use", "the same") or "MIT" in row
        assert f"`{photo.name}`" in terms
    assert tree_size(WEB / "examples") < 500_000


def test_all_that_the_page_needs_is_installed_with_the_package() -> None:
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["fairweather"]
    for file in [*(WEB / "static").iterdir(), *(WEB / "examples").iterdir()]:
        assert any(file.relative_to(SOURCE).match(pattern) for pattern in data), f"{file} would not be installed"


def test_nothing_of_ours_comes_from_elsewhere() -> None:
    for file in (WEB / "static").iterdir():
        found = set(re.findall(r"https?://[^\s\"'<>)]+", file.read_text())) - {"http://www.w3.org/2000/svg"}
        assert not found, f"{file.name} names {found}"


def test_the_choice_of_models_is_what_ships(service: Any) -> None:
    from fairweather.web.page import build_page

    parts = build_page(service).get_config_file()["components"]
    choice = next(part for part in parts if part["props"].get("elem_id") == "fw-model")
    assert [value for _, value in choice["props"]["choices"]] == ["auto", *model_folder.shipped()]


def test_models_of_ones_own_are_offered_under_their_card_s_name(tmp_path: Path, web: None) -> None:
    from fairweather.web.model_registry import ModelRegistry, RestoreSettings

    shutil.copytree(model_folder.shipped()["dehaze-fast"], tmp_path / "folder")
    with pytest.raises(BadSettings, match="already"):
        ModelRegistry([tmp_path / "folder"])
    card = json.loads((tmp_path / "folder" / model_folder.CARD).read_text())
    (tmp_path / "folder" / model_folder.CARD).write_text(json.dumps({**card, "name": "mine"}))
    offer = ModelRegistry([tmp_path / "folder"])
    assert list(offer.cards) == [*model_folder.shipped(), "mine"]
    offer.check(RestoreSettings("mine"))
    with pytest.raises(UnknownName):
        offer.check(RestoreSettings(str(tmp_path / "folder")))


@pytest.mark.parametrize(
    ("start", "clip"),
    [
        (b"\0\0\0\x20ftypisom", True),
        (b"\0\0\0\x14ftypqt  ", True),
        (b"\x1aE\xdf\xa3", True),
        (b"RIFF\0\0\0\0AVI ", True),
        (b"GIF89a", True),
        (b"#EXTM3U\n", False),
        (b"ffconcat version 1.0\n", False),
        (b"\0\0\0\x20ftypavif", False),
        (b"\0\0\0\x18ftypheic", False),
        (b"RIFF\0\0\0\0WEBP", False),
        (b"\xff\xd8\xff\xe0", False),
        (b"", False),
    ],
)
def test_clips_are_told_from_photos(start: bytes, clip: bool) -> None:
    assert uploads.is_clip_upload(start) is clip


def test_whoever_sends_a_clip_is_told_what_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "AV", "json")  # which is there
    assert "/api/v1/clips" in str(uploads.refusal("a.mp4"))
    monkeypatch.setattr(uploads, "AV", "no_such_module")
    assert "fairweather[video]" in str(uploads.refusal("a.mp4"))
