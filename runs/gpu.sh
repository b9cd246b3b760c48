#!/usr/bin/env bash
# Train the shipped models on a machine with a GPU and PyTorch, without internet access or the photos.
#
#   runs/gpu.sh pack DATA PACK             here: pack reduced, re-encoded photos, and wheels that may be missing there
#   runs/gpu.sh try PACK RUN [CONFIG]      there: 300 steps, with as many accelerations as work
#   runs/gpu.sh train PACK RUN [MINUTES] [CONFIG]     there: `try` unless done, then train. RUN/back has the files to
#                                          copy back: model folder, stats.jsonl, run.json, the last sheet
#
# DATA is the folder of training sets named by the run file; PACK stays under 45 MiB. MINUTES limits the whole command
# (by default 9, for a limit of ten minutes). CONFIG is runs/ship/dehaze.toml by default. Photos are decoded once into
# GPU memory, batches are made there, and the network is compiled; if one of these fails, `try` continues without it
# and records that in RUN-try/options. Repeat `train` with the same RUN to resume. OpenVINO is not packed, so parity
# is checked in the other engines only: afterwards, `fairweather export RUN/back/model -o DIR` checks all of them.
# Measure the model with `fairweather evaluate` before it replaces a shipped one.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
batch=${BATCH:-64} steps=${STEPS:-300}
wheels="tyro typeguard docstring-parser safetensors rich"

pack() {
    local data=$1 pack=$2
    if [ ! -d "$data" ]; then
        echo "$data is not a folder: give the folder of training sets" >&2
        exit 1
    fi
    mkdir -p "$pack/wheels"
    # Any Python 3.12 on Linux; what is there already is not used.
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any \
        --dest "$pack/wheels" --constraint "$here/constraints.txt" $wheels
    "$python" - "$data" "$pack" <<'PYTHON'
import io
import shutil
import sys
from pathlib import Path

from PIL import Image

LIMIT = 45 << 20
# Short side and quality, the best first; the first that should fit is taken.
LADDER = [(400, 90), (400, 84), (400, 76), (360, 76), (320, 80), (320, 76), (320, 72), (320, 64), (320, 50), (256, 60)]
data, pack = map(Path, sys.argv[1:])
shutil.rmtree(pack / "data", ignore_errors=True)
room = LIMIT - sum(wheel.stat().st_size for wheel in (pack / "wheels").iterdir()) - (1 << 18)
photos = sorted(p for p in data.rglob("*") if p.suffix.lower() in {".jpg", ".png"})
# Streaks are lost by what photos bear; a map keeps its bits.
exact = [p for p in photos if "rain100" in p.parts or p.stem.endswith("_disparity")]
others = [p for p in photos if p not in set(exact)]
room -= sum(p.stat().st_size for p in exact)


def encoded(photo, short_side, quality):
    """The bytes of a photo, and their suffix: the file's own where that is smaller and no larger than is asked for."""
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    scale = short_side / min(picture.size)
    if scale < 1:
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    if scale >= 1 and photo.stat().st_size <= buffer.tell():
        return photo.read_bytes(), photo.suffix
    return buffer.getvalue(), ".webp"


for short_side, quality in LADDER:
    some = others[::12]
    if sum(len(encoded(p, short_side, quality)[0]) for p in some) / max(1, len(some)) * len(others) > 0.96 * room:
        continue
    total = 0
    for photo in others:
        content, suffix = encoded(photo, short_side, quality)
        total += len(content)
        target = (pack / "data" / photo.relative_to(data)).with_suffix(suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if total <= room:
        break
    shutil.rmtree(pack / "data")
else:
    sys.exit("the photos do not fit: take fewer sets")
for photo in exact:
    target = pack / "data" / photo.relative_to(data)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(photo, target)
size = sum(p.stat().st_size for p in pack.rglob("*") if p.is_file()) / 2**20
print(f"{len(photos)} photos ({len(exact)} as they are, the others at short side {short_side}, quality {quality}): "
      f"{size:.1f} MiB in {pack}")
PYTHON
}

prepare() { # PACK CONFIG: what every call of fairweather needs
    local pack=$1 config=$2 site
    if [ ! -d "$pack/wheels" ] || [ ! -d "$pack/data" ]; then
        echo "$pack is no pack: make one with \`runs/gpu.sh pack DATA $pack\`" >&2
        exit 1
    fi
    if [ ! -f "$config" ]; then
        echo "$config is not there: give the run's settings file" >&2
        exit 1
    fi
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$pack"/wheels/*.whl
    export PYTHONPATH="$here/src:$site" PYTHONUNBUFFERED=1
    common=(train --config "$config" --data "$pack/data" --batch "$batch" --log-steps 50 --parity installed
        --threads 2 --workers "$(($(nproc) > 2 ? $(nproc) - 2 : 1))")
}

try() {
    local run=$2 options
    prepare "$1" "${3:-$here/runs/ship/dehaze.toml}"
    for options in "--on-device True --compile True" "--on-device True --compile False" "--on-device False --compile False"; do
        rm -rf "$run-try"
        # What is compiled here is found again by `train`, in the compiler's own cache.
        if "$python" -m fairweather "${common[@]}" $options --out "$run-try" --steps "$steps" --sample-steps 0; then
            echo "$options" >"$run-try/options"
            "$python" - "$run-try/stats.jsonl" "$batch" "$options" <<'PYTHON'
import json
import sys

# The second half alone: the first holds the warming up.
times = [json.loads(line)["time"] for line in open(sys.argv[1])]
half = len(times) // 2
print(f"{(len(times) - half - 1) / max(1e-9, times[-1] - times[half]) * int(sys.argv[2]):.0f} photos a second "
      f"with {sys.argv[3]}")
PYTHON
            return
        fi
        echo "$options does not work here; going on without" >&2
    done
    echo "not one step could be trained: see above" >&2
    exit 1
}

train() {
    local pack=$1 run=$2 minutes=${3:-9} config=${4:-$here/runs/ship/dehaze.toml} left
    prepare "$pack" "$config"
    if [ -d "$run/checkpoints" ]; then
        # Everything but the cadence is in RUN/run.json.
        "$python" -m fairweather train --out "$run" --resume --checkpoint-minutes 1
    else
        if [ ! -f "$run-try/options" ]; then try "$pack" "$run" "$config"; fi
        # Decoding and the export need about 50 s.
        left=$(awk -v all="$minutes" -v gone="$SECONDS" 'BEGIN { print all - gone / 60 - 50 / 60 }')
        if awk -v left="$left" 'BEGIN { exit left >= 0.5 }'; then
            echo "of $minutes minutes $left are left for training: give more" >&2
            exit 1
        fi
        "$python" -m fairweather "${common[@]}" $(<"$run-try/options") --out "$run" --minutes "$left" \
            --checkpoint-minutes 1
    fi
    mkdir -p "$run/back"
    cp -r "$run/model" "$run/stats.jsonl" "$run/run.json" "$run/back/"
    cp "$(ls "$run"/samples/*.jpg | tail -n 1)" "$run/back/"
}

case ${1:-}:$# in
pack:3 | try:[34] | train:[345]) "$@" ;;
*) sed >&2 -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
