"""A model folder: what a trained network is when it leaves training, and all that restoring needs of it.

    card.json             what the model is, where it came from, on which terms, how well it scores
    weights.safetensors   the generator's tensors, float32 (nothing is ever unpickled)
    model.onnx            the same network with free height and width
    model.int8.onnx       the same again, quantized: only where `fairweather quantize` made it

`card.json` is read strictly: a card that this release does not fully understand is refused, because a model
that runs with a setting misread gives a wrong picture without a word.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors

from fairweather.errors import BadCard, BadFolder, UnknownName
from fairweather.files import atomic, recover

FORMAT_VERSION = 1
GENERATOR_NAMES: tuple[str, ...] = (
    *("resnet6", "resnet9", "unet", "mbconv_unet", "multipath_unet"),
    *("conv_unet", "gunet", "scattering_maps", "recurrent_maps"),
)
CARD = "card.json"
WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
INT8 = "model.int8.onnx"
SUMMED = (WEIGHTS, ONNX)
"""The files whose SHA-256 stands in every card; that of INT8 stands in the card of a model that is quantized."""

MODELS = Path(__file__).resolve().parent / "models"


@dataclass(frozen=True)
class MapsSpec:
    """How a network that gives maps is fed and how its maps meet the photo (see restoring/apply.py)."""

    size: int
    """The network sees the photo reduced to about size x size pixels."""
    radius: int
    """Radius of the guided filter, in pixels of the reduced photo."""
    eps: float
    """Regularisation of the guided filter, for pictures in [0,1]."""


@dataclass(frozen=True)
class StateSpec:
    """What a network for video keeps from frame to frame: 1 x channels x h/stride x w/stride float32 for a network's
    input of h x w, zeros before the first frame; `state` and `state_after` of model.onnx."""

    channels: int
    """Channels of the state."""
    stride: int
    """Pixels of the network's input, along each side, for one place of the state; divides `multiple_of`."""


@dataclass(frozen=True)
class Card:
    """What `card.json` says. Every field but those that say so stands in the file; defaults are for those who
    write one."""

    name: str
    weather: str
    """What it takes out, or puts in: "haze", "rain", ..."""
    generator: str
    """One of GENERATOR_NAMES."""
    arguments: dict[str, Any]
    """Keyword arguments that rebuild the generator."""
    output: Literal["image", "maps"]
    multiple_of: int
    """The network takes sides that are multiples of this; tiles are aligned to it."""
    receptive_field: int | None
    """Side in pixels of what one output pixel depends on; None = the whole picture (global statistics): never tiled."""
    maps: MapsSpec | None
    """Set where output is "maps"."""
    training: dict[str, Any]
    """Recipe, settings, data and duration, as the training noted them."""
    scores: list[dict[str, Any]]
    """Each with metric, protocol, data, n, value and, where known, input (the score of the untouched photos), spread
    (standard deviation over the photos) and worse (how many photos were left further from the truth)."""
    licence: str
    terms: str
    """Terms that the training data put on the use of the weights."""
    bytes_per_pixel: float = 0.0
    """Peak memory of the network's activations per input pixel, float32, as counted at export; 0 = not known."""
    description: str = ""
    direction: Literal["restore", "degrade"] = "restore"
    """`degrade`: it puts the weather into clear photos. Stands in the file only then: the format stays version 1, since
    what restores is written as ever, and a release that does not know the field refuses what it would misuse."""
    choice: str = ""
    """Which of what was trained this one is, chosen by what, and why. Stands in the file only where it was said."""
    most_pixels: int = 0
    """Of a network that gives a picture: it sees larger photos reduced to about so many pixels, and what it changes is
    enlarged; 0 = it sees them as they are. Stands in the file only where it is not 0."""
    state: StateSpec | None = None
    """Of a network with a memory: what it takes and gives beside the picture. Stands in the file only then."""
    quantized: dict[str, Any] | None = None
    """How model.int8.onnx was made and how it compares with the float model: method, calibration, which layers stay in
    float and why, parity, cost (see deploy/quantize.py). Stands in the file only where there is such a network."""
    picture_range: tuple[float, float] = (0.0, 1.0)
    checksums: dict[str, str] = field(default_factory=dict)
    """File name -> SHA-256, filled in by write_card."""
    format_version: int = FORMAT_VERSION


def read_card(folder: str | os.PathLike[str], *, verify: bool = True) -> Card:
    """The card of a model folder; with `verify` the checksums of the files beside it are compared too.

    Raises BadCard (incomplete, altered, or of another version) and BadFolder (no such folder).
    """
    folder = Path(folder)
    recover(folder)
    if not folder.is_dir():
        raise BadFolder(f"{folder} is not a folder: a model is a folder with {CARD}, {WEIGHTS} and {ONNX}")
    path = folder / CARD
    try:
        fields = json.loads(path.read_bytes(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except FileNotFoundError:
        raise BadCard(f"{path} is missing: this is not a model folder, or only a part of one; copy it again") from None
    except OSError as error:
        raise BadCard(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise BadCard(f"{path} is not valid JSON ({error}): copy or export the model again") from None
    card = _parse(fields, path)
    if verify:
        for name in summed(card):
            checked(folder, card, name)
    return card


def summed(card: Card) -> tuple[str, ...]:
    """The files whose SHA-256 stands in this card."""
    return SUMMED if card.quantized is None else (*SUMMED, INT8)


def write_card(folder: str | os.PathLike[str], card: Card) -> Card:
    """Write card.json beside the files it sums (atomically) and give the card with its checksums.

    Raises BadCard where a summed file is missing or a field of the card could not be read back.
    """
    folder = Path(folder)
    card = dataclasses.replace(card, checksums={name: _sha256(folder / name) for name in summed(card)})
    path = folder / CARD
    try:
        text = json.dumps(_fields(card), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BadCard(f"{path} cannot be written: a field is not plain JSON ({error})") from None
    card = _parse(json.loads(text), path)  # what is written is what will be read
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return card


def read_weights(folder: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Name -> array of weights.safetensors, its checksum compared first. Raises BadCard."""
    card = read_card(folder, verify=False)
    path = checked(folder, card, WEIGHTS)
    try:
        tensors: dict[str, NDArray[Any]] = load_safetensors(path.read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise BadCard(f"{path} is not a safetensors file ({error}): copy or export the model again") from None
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise BadCard(f"{path}: tensor {name!r} holds NaN or infinity: the training diverged; use another model")
    return tensors


def checked(folder: str | os.PathLike[str], card: Card, name: str) -> Path:
    """The path of one of the model's files, once its checksum is the card's. Raises BadCard."""
    path = Path(folder) / name
    found, expected = _sha256(path), card.checksums[name]
    if found != expected:
        raise BadCard(
            f"{path} is not the file that {CARD} describes (SHA-256 {found[:12]}..., expected {expected[:12]}...): "
            "it was altered or not copied whole; copy or export the model again"
        )
    return path


def shipped() -> dict[str, Path]:
    """Name -> folder of the models that come with the package."""
    return {card.parent.name: card.parent for card in sorted(MODELS.glob(f"*/{CARD}"))}


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The model folder behind a shipped name, a model folder's path, or a run folder's path (its `model/`).

    A shipped name wins over a folder of the same name; write ./name for the folder.
    Raises UnknownName for a word that is neither, BadFolder for a path that holds no model.
    """
    models = shipped()
    text = os.fspath(name_or_path)
    if text in models:
        return models[text]
    path = Path(text)
    recover(path)
    recover(path / "model")
    if (path / CARD).is_file():
        return path
    if (path / "model" / CARD).is_file():
        return path / "model"
    if (path / "checkpoints").is_dir():
        raise BadFolder(
            f"{path} is a run that has not ended and holds no model yet: go on with it (train --resume), "
            f"or make a model of its last checkpoint (fairweather export {path} -o DIR)"
        )
    if path.is_dir():
        raise BadFolder(f"{path} holds no model: there is neither {CARD} nor model/{CARD} in it; give another folder")
    if isinstance(name_or_path, str) and path.name == text:
        raise UnknownName("model", text, models)
    raise BadFolder(f"{path} is not a model folder: give a shipped name ({', '.join(models)}) or a folder with {CARD}")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise BadCard(f"{path} is missing: the model folder is incomplete; copy or export the model again") from None
    except OSError as error:
        raise BadCard(
            f"{path} cannot be read ({error.strerror}): check that it is a file and its permissions"
        ) from None


def _fields(card: Card) -> dict[str, Any]:
    fields = dataclasses.asdict(card)
    return {key: value for key, value in fields.items() if key not in _OPTIONAL or value != _OPTIONAL[key]}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is there twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or (_integer(value) and abs(value) < 2**63)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _a_score(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) - {"input", "spread", "worse"} == {"metric", "protocol", "data", "n", "value"}
        and all(_text(value[key]) for key in ("metric", "protocol", "data"))
        and _integer(value["n"])
        and _number(value["value"])
        and all(value.get(key) is None or _number(value[key]) for key in ("input", "spread", "worse"))
    )


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: _text(v) and v != "" and not set(v) & set("/\\\0"), "a name without slashes"),
    "weather": (lambda v: _text(v) and v != "", "a text"),
    "generator": (_text, "a text"),
    "arguments": (lambda v: isinstance(v, dict), "an object"),
    "output": (lambda v: v in ("image", "maps"), '"image" or "maps"'),
    "multiple_of": (lambda v: _integer(v) and v >= 1, "a whole number from 1"),
    "receptive_field": (lambda v: v is None or (_integer(v) and v >= 1), "a whole number from 1, or null"),
    "maps": (lambda v: v is None or isinstance(v, dict), "an object or null"),
    "training": (lambda v: isinstance(v, dict), "an object"),
    "scores": (
        lambda v: isinstance(v, list) and all(map(_a_score, v)),
        "a list of objects, each with metric, protocol, data, n, value (and input, spread, worse)",
    ),
    "licence": (_text, "a text"),
    "terms": (_text, "a text"),
    "bytes_per_pixel": (lambda v: _number(v) and v >= 0, "a number from 0"),
    "description": (_text, "a text"),
    "direction": (lambda v: v in ("restore", "degrade"), '"restore" or "degrade"'),
    "choice": (_text, "a text"),
    "most_pixels": (lambda v: _integer(v) and v >= 0, "a whole number from 0"),
    "state": (lambda v: v is None or isinstance(v, dict), "an object or null"),
    "quantized": (
        lambda v: v is None or (isinstance(v, dict) and _text(v.get("method")) and isinstance(v.get("passed"), bool)),
        "an object with method and passed, among others",
    ),
    "picture_range": (lambda v: isinstance(v, list) and v == [0, 1], "[0, 1]"),
    "checksums": (
        lambda v: isinstance(v, dict) and set(v) - {INT8} == set(SUMMED) and all(map(_text, v.values())),
        f"an object with the SHA-256 of {' and '.join(SUMMED)} (and of {INT8} where the model is quantized)",
    ),
    "format_version": (_integer, "a whole number"),
}
_OPTIONAL: dict[str, Any] = {"direction": "restore", "choice": "", "most_pixels": 0, "state": None, "quantized": None}
"""Fields that came after the first release, with what a card means that does not have them."""
_STATE_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "channels": (lambda v: _integer(v) and v >= 1, "a whole number from 1"),
    "stride": (lambda v: _integer(v) and v >= 1, "a whole number from 1"),
}
_MAPS_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "size": (lambda v: _integer(v) and v >= 1, "a whole number from 1"),
    "radius": (lambda v: _integer(v) and v >= 0, "a whole number from 0"),
    "eps": (lambda v: _number(v) and v > 0, "a number above 0"),
}


def _parse(fields: Any, path: Path) -> Card:
    """The card in `fields` (of the file `path`, for the messages). Raises BadCard."""
    if not isinstance(fields, dict):
        raise BadCard(f"{path} holds no JSON object: copy or export the model again")
    version = fields.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION or isinstance(version, bool):  # before the rest: another version has other fields
        raise BadCard(
            f"{path} has format version {version!r}; this fairweather reads version {FORMAT_VERSION}: "
            "install the release that wrote it, or export the model again with this one"
        )
    fields = {**_OPTIONAL, **fields}
    _check(fields, _KINDS, path, "")
    if fields["generator"] not in GENERATOR_NAMES:
        raise BadCard(
            f"{path}: generator {fields['generator']!r} is not one of {', '.join(GENERATOR_NAMES)}: "
            "correct it, or install the release that has it"
        )
    if (fields["output"] == "maps") != (fields["maps"] is not None):
        raise BadCard(f'{path}: field "maps" belongs to output "maps" and to no other: export the model again')
    if (fields["quantized"] is not None) != (INT8 in fields["checksums"]):
        raise BadCard(
            f'{path}: field "quantized" and the checksum of {INT8} belong together: quantize the model again, or copy '
            "it again"
        )
    maps = state = None
    if fields["maps"] is not None:
        _check(fields["maps"], _MAPS_KINDS, path, "maps.")
        maps = MapsSpec(**fields["maps"])
    if fields["state"] is not None:
        _check(fields["state"], _STATE_KINDS, path, "state.")
        state = StateSpec(**fields["state"])
        if fields["multiple_of"] % state.stride:
            raise BadCard(f"{path}: state.stride must divide multiple_of: export the model again with this release")
    return Card(**{**fields, "maps": maps, "state": state, "picture_range": (0.0, 1.0)})


def _check(fields: dict[str, Any], kinds: dict[str, tuple[Callable[[Any], bool], str]], path: Path, at: str) -> None:
    remedy = "export the model again with this release"
    if missing := [key for key in kinds if key not in fields]:
        raise BadCard(f"{path} lacks the field {', '.join(at + key for key in missing)}: {remedy}")
    if unknown := [key for key in fields if key not in kinds]:
        raise BadCard(f"{path} has an unknown field {', '.join(at + key for key in unknown)}: remove it, or {remedy}")
    for key, (fits, words) in kinds.items():
        if not fits(fields[key]):
            raise BadCard(f"{path}: field {at}{key} must be {words}, not {json.dumps(fields[key])[:80]}: {remedy}")
