#!/usr/bin/env bash
# Train what ships on a machine with a GPU that has PyTorch but neither a network nor the photos.
#
#   runs/gpu.sh pack DATA PACK             here: photos reduced and re-encoded, and the wheels that may be missing there
#   runs/gpu.sh train PACK RUN [MINUTES] [CONFIG]     there: a benchmark of 30 s, then training; RUN/back holds what to
#                                                    bring home: the model folder, stats.jsonl, run.json, the last sheet
#
# DATA is the folder of training sets that the run file names; PACK stays under 45 MiB. MINUTES is 8 by default (so that
# a limit of ten minutes is kept), CONFIG runs/dehaze.toml. Repeat `train` with the same RUN to go on after an
# interruption. OpenVINO is not packed, so what comes back was compared in the other engines alone: at home
# `fairweather export RUN/back/model -o DIR` compares it in all. Judge it by `fairweather evaluate` before it replaces
# what ships.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
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
    PYTHONPATH="$here/src" "$python" - "$data" "$pack/data" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image

LIMIT, SHORT_SIDE = 44 << 20, 320
data, out = map(Path, sys.argv[1:])
photos = sorted(p for p in data.rglob("*") if p.suffix.lower() in {".jpg", ".png"} and "rain100" not in p.parts)
for quality in (88, 82, 75, 65):
    total = 0
    for photo in photos:
        if photo.stem.endswith("_disparity"):  # a map keeps its bits
            target = out / photo.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(photo.read_bytes())
        else:
            target = (out / photo.relative_to(data)).with_suffix(".webp")
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(photo) as opened:
                picture = opened.convert("RGB")
            scale = SHORT_SIDE / min(picture.size)
            if scale < 1:
                picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BOX)
            picture.save(target, quality=quality, method=4)
        total += target.stat().st_size
        if total > LIMIT:
            break
    else:
        print(f"{len(photos)} photos at short side {SHORT_SIDE}, quality {quality}: {total / 2**20:.1f} MiB in {out}")
        break
else:
    sys.exit("the photos do not fit: take fewer sets")
PYTHON
}

train() {
    local pack=$1 run=$2 minutes=${3:-8} config=${4:-$here/runs/dehaze.toml} site
    if [ ! -d "$pack/wheels" ] || [ ! -d "$pack/data" ]; then
        echo "$pack is no pack: make one with \`runs/gpu.sh pack DATA $pack\`" >&2
        exit 1
    fi
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$pack"/wheels/*.whl
    export PYTHONPATH="$here/src:$site" PYTHONUNBUFFERED=1
    local common=(train --config "$config" --data "$pack/data" --workers "$(($(nproc) > 2 ? $(nproc) - 2 : 1))"
        --batch 64 --log-steps 50 --parity installed)
    if [ ! -d "$run/state" ]; then
        "$python" -m fairweather "${common[@]}" --out "$run-benchmark" --minutes 0.5 --sample-steps 0
    fi
    local resume=()
    if [ -d "$run/state" ]; then resume=(--resume); fi
    "$python" -m fairweather "${common[@]}" --out "$run" --minutes "$minutes" --checkpoint-minutes 1 "${resume[@]}"
    mkdir -p "$run/back"
    cp -r "$run/model" "$run/stats.jsonl" "$run/run.json" "$run/back/"
    cp "$(ls "$run"/samples/*.jpg | tail -n 1)" "$run/back/"
}

case ${1:-}:$# in
pack:3 | train:[345]) "$@" ;;
*) sed >&2 -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
