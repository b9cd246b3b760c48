"""`fairweather restore`: what it writes, what it says, and its exit code for everything that can be wrong."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, images


def restore(model: Path, *words: object) -> int:
    return cli.main(["restore", "--model", str(model), *map(str, words)])


@pytest.fixture
def here(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two photos in photos/, one of them in a folder below."""
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    Image.fromarray(photo).save(tmp_path / "photos" / "a.jpg", quality=90)
    Image.fromarray(photo[::-1]).save(tmp_path / "photos" / "trip" / "b.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_goes_to_restored_with_its_structure(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (here / "photos" / "a.jpg").read_bytes()
    assert restore(tiny_model, "photos") == 0
    made = {path.relative_to(here / "restored").as_posix() for path in (here / "restored").rglob("*.*")}
    assert made == {"a.jpg", "trip/b.png"}
    assert (here / "photos" / "a.jpg").read_bytes() == before
    said = capsys.readouterr()
    assert "2 of 2 photos restored" in said.out
    assert "engine: openvino" in said.err
    assert "Traceback" not in said.err


def test_engines_agree_and_the_log_says_which(tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = {}
    for engine in ("openvino", "onnxruntime", "torch"):
        assert restore(tiny_model, "photos/trip/b.png", "-o", f"{engine}.png", "--engine", engine) == 0
        assert f"engine: {engine} " in capsys.readouterr().err
        results[engine] = images.read(here / f"{engine}.png").pixels.astype(int)
    assert np.abs(results["onnxruntime"] - results["torch"]).max() <= 1
    assert np.abs(results["openvino"] - results["torch"]).mean() < 1  # bf16 where the processor has it
    assert np.abs(results["torch"] - images.read(here / "photos/trip/b.png").pixels.astype(int)).mean() > 1


def test_one_photo_to_one_file_and_strength(tiny_model: Path, here: Path, photo: np.ndarray) -> None:
    photos = {}
    for strength in ("0", "0.5", "1"):
        out = here / f"{strength}.png"
        assert restore(tiny_model, "photos/trip/b.png", "-o", out, "--strength", strength, "--no-guard") == 0
        photos[strength] = images.read(out).pixels.astype(float)
    assert (here / "0.png").read_bytes() == (here / "photos" / "trip" / "b.png").read_bytes()
    half = (photos["0"] + photos["1"]) / 2
    assert np.abs(photos["0.5"] - half).max() <= 1
    assert np.abs(photos["1"] - photos["0"]).mean() > 1


def test_what_is_there_is_skipped_unless_overwrite(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(tiny_model, "photos") == 0
    (here / "restored" / "a.jpg").write_text("mine")
    assert restore(tiny_model, "photos") == 0
    assert (here / "restored" / "a.jpg").read_text() == "mine"
    assert "2 were there already (--overwrite" in capsys.readouterr().out
    assert restore(tiny_model, "photos", "--overwrite") == 0
    assert (here / "restored" / "a.jpg").stat().st_size > 1000


def bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_bad_files_are_counted_named_and_the_rest_is_done(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = here / "photos"
    (photos / "text.jpg").write_text("Dear diary, today it was foggy.\n" * 50)
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:1500])
    (photos / "empty.png").touch()
    bomb(photos / "bomb.png")
    assert restore(tiny_model, "photos") == 4
    said = capsys.readouterr()
    bad = [line for line in said.err.splitlines() if line.startswith("not restored: ")]
    assert len(bad) == 4
    for name in ("text.jpg", "cut.jpg", "empty.png", "bomb.png"):
        assert sum(name in line for line in bad) == 1
        assert not (here / "restored" / name).exists()
    assert "2 of 6 photos restored" in said.out
    assert "4 failed" in said.out
    assert (here / "restored" / "a.jpg").exists()
    assert (here / "restored" / "trip" / "b.png").exists()


def test_the_exit_code_ends_at_100(tiny_model: Path, here: Path) -> None:
    for number in range(130):
        (here / "photos" / f"{number}.jpg").touch()
    assert restore(tiny_model, "photos") == 100


def test_odd_kinds_work(tiny_model: Path, here: Path, photo: np.ndarray) -> None:
    """1 x 1, CMYK, 16 bit, and a phone's photo that lies on its side."""
    odd = here / "odd"
    odd.mkdir()
    Image.new("RGB", (1, 1), (120, 130, 140)).save(odd / "dot.png")
    Image.fromarray(photo).convert("CMYK").save(odd / "print.jpg")
    images.write(odd / "deep.png", photo.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(odd / "phone.jpg", exif=exif)
    assert restore(tiny_model, "odd", "-o", "out") == 0
    assert Image.open(here / "out" / "dot.png").size == (1, 1)
    assert Image.open(here / "out" / "print.jpg").mode == "CMYK"
    assert images.read(here / "out" / "deep.png").pixels.dtype == np.uint16
    assert Image.open(here / "out" / "phone.jpg").size == (photo.shape[0], photo.shape[1])


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error that stopped everything."""
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("fairweather: error: ")]
    assert len(lines) == 1, said.err
    assert said.out == ""
    return lines[0]


def test_errors_before_any_work(tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(tiny_model, "gone.jpg") == 1
    assert "gone.jpg" in error(capsys)
    assert restore(tiny_model, "photos/a.jpg", "-o", "photos") == 1
    assert "written over the input" in error(capsys)
    assert restore(tiny_model, "photos/a.jpg", "--max-pixels", "100", "-o", "x") == 1
    capsys.readouterr()
    assert restore(tiny_model, "photos", "--strength", "1.5") == 1
    assert "--strength" in error(capsys)
    assert restore(Path("dehazed"), "photos") == 1
    assert "dehazed" in error(capsys)
    (here / "file").touch()
    assert restore(tiny_model, "photos", "-o", "file") == 1
    assert "file" in error(capsys)
    shutil.copytree(here / "photos", here / "photos2")
    assert restore(tiny_model, "photos", "photos2") == 1
    assert "would both be written" in error(capsys)
    assert not (here / "restored").exists()


def test_a_changed_byte_in_the_model_is_refused(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = here / "model"
    shutil.copytree(tiny_model, model)
    content = bytearray((model / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "weights.safetensors").write_bytes(content)
    assert restore(model, "photos") == 1
    assert "weights.safetensors" in error(capsys)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tiny_model: Path, here: Path) -> None:
    """A limit on the size of files stands in for the disk: the system refuses the write in the middle."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); "
        "from fairweather.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["restore", "--model", str(tiny_model), "photos/trip/b.png", "--engine", "onnxruntime"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert not list((here / "restored").rglob("*.*"))


def test_no_input_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["restore"]) == 2
    assert "name the photos" in capsys.readouterr().err
    assert cli.main(["restore", "a.jpg", "--engine", "steam"]) == 2
    assert cli.main(["restore", "a.jpg", "--strength", "much"]) == 2


def test_where_results_are_is_said_only_if_there_are_any(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "text.jpg").write_text("Dear diary, today it was foggy.\n")
    assert restore(tiny_model, "text.jpg", "-o", "clear.jpg") == 1
    assert "clear.jpg" not in capsys.readouterr().out
    assert restore(tiny_model, "photos/a.jpg", "-o", "clear.jpg") == 0
    assert "clear.jpg" in capsys.readouterr().out


def test_memory_is_kept_to_or_says_what_it_takes(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(tiny_model, "photos", "--memory", "8GB") == 0
    assert "2 of 2 photos restored" in capsys.readouterr().out
    for words, told in (("10MB", "too little"), ("plenty", "no amount"), ("2GBB", "no amount")):
        assert restore(tiny_model, "photos", "-o", "other", "--memory", words) == 1
        assert told in capsys.readouterr().err
    assert not (here / "other").exists()
