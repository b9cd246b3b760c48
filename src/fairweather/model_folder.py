"""Model folders: the result of training and all that inference needs, read strictly and written atomically.

card.json             what the model is, how it was trained, on which terms, its scores
weights.safetensors   the generator's tensors (nothing is ever unpickled)
model.onnx            the same network with free height and width
model.int8.onnx       the quantized network, if `fairweather quantize` wrote one
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
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
"""The files with a SHA-256 in every card; a quantized model's card also has that of INT8."""
MODELS = Path(__file__).resolve().parent / "models"
MAX_DEPTH = 32
"""Deepest nesting of objects and lists in a card."""
UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, changes of text direction, unpaired surrogates: no text of a card has them,
so that all of it can be printed to a terminal."""


@dataclass(frozen=True)
class MapsSpec:
    """Input size of a network that predicts maps, and the guided filter that applies them to the photo."""

    size: int
    """The network's input is the photo reduced to about size x size pixels."""
    radius: int
    """Radius of the guided filter, in pixels of the maps."""
    eps: float
    """Regularization of the guided filter, for pictures in [0,1]."""


@dataclass(frozen=True)
class StateSpec:
    """State that a network for video carries from frame to frame: 1 x channels x h/stride x w/stride float32 for an
    input of h x w, zeros before the first frame; input `state` and output `state_after` of model.onnx."""

    channels: int
    stride: int
    """Input pixels per state cell along each side; divides `multiple_of`."""


@dataclass(frozen=True)
class Card:
    """The contents of `card.json`."""

    name: str
    weather: str
    """The weather that the model removes or adds: "haze", "rain", ..."""
    generator: str
    """One of GENERATOR_NAMES."""
    arguments: dict[str, Any]
    """Keyword arguments of the generator."""
    output: Literal["image", "maps"]
    multiple_of: int
    """Required divisor of the network's input sides; tiles are aligned to it."""
    receptive_field: int | None
    """Side in pixels of the input region that one output pixel depends on; None = the whole picture: never tiled."""
    maps: MapsSpec | None
    """Present if and only if `output` is "maps"."""
    training: dict[str, Any]
    """Recipe, settings, data and duration, as recorded by training."""
    scores: list[dict[str, Any]]
    """Each with metric, protocol, data, n and value; optionally input (score of the unprocessed photos), spread
    (standard deviation over the photos) and worse (number of photos that lost quality)."""
    licence: str
    terms: str
    """Terms of use of the weights that follow from the training data."""
    bytes_per_pixel: float = 0.0
    """Peak memory of the float32 activations per input pixel, counted at export; 0 = unknown."""
    description: str = ""
    direction: Literal["restore", "degrade"] = "restore"
    """`degrade` models add the weather to clear photos."""
    choice: str = ""
    """Why this model was selected among the trained candidates."""
    most_pixels: int = 0
    """For output "image": larger photos are reduced to about this many pixels, and the predicted change is enlarged;
    0 = no limit."""
    state: StateSpec | None = None
    """Present for recurrent networks."""
    quantized: dict[str, Any] | None = None
    """Present if there is a model.int8.onnx: how it was made and how it compares (see deploy/quantization.py)."""
    picture_range: tuple[float, float] = (0.0, 1.0)
    checksums: dict[str, str] = field(default_factory=dict)
    """File name -> SHA-256, filled in by write_card."""
    format_version: int = FORMAT_VERSION


def shipped() -> dict[str, Path]:
    """Name -> folder of the shipped models."""
    return {card.parent.name: card.parent for card in sorted(MODELS.glob(f"*/{CARD}"))}


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """Find a model folder.

    Args:
        name_or_path: name of a shipped model, path of a model folder, or path of a run folder (its `model/` is used).
            A shipped name takes precedence over a folder of that name; write ./name for the folder.

    Raises:
        UnknownName: a word that is neither a shipped model nor a folder.
        BadFolder: a path without a model.
    """
    models = shipped()
    text = os.fspath(name_or_path)
    if text in models:
        return models[text]
    path = Path(text)
    for folder in (path, path / "model"):
        recover(folder)
        if (folder / CARD).is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise BadFolder(
            f"{path} is an unfinished run without a model: resume it (train --resume), "
            f"or export its last checkpoint (fairweather export {path} -o DIR)"
        )
    if path.is_dir():
        raise BadFolder(f"{path} contains no model, neither {CARD} nor model/{CARD}: give another folder")
    if isinstance(name_or_path, str) and path.name == text:
        raise UnknownName("model", text, models)
    raise BadFolder(f"{path} is not a model folder: give a shipped name ({', '.join(models)}) or a folder with {CARD}")


def read_card(folder: str | os.PathLike[str], *, verify: bool = True) -> Card:
    """Read the card of a model folder.

    Args:
        folder: the model folder.
        verify: also compare the checksums of the model's files.

    Raises:
        BadCard: the folder is incomplete, altered, or of a version or content that this release does not read.
        BadFolder: the folder does not exist.
    """
    folder = Path(folder)
    recover(folder)
    if not folder.is_dir():
        raise BadFolder(f"{folder} is not a folder: a model is a folder with {CARD}, {WEIGHTS} and {ONNX}")
    path = folder / CARD
    card = _parse(read_json(path, "copy or export the model again"), path)
    if verify:
        for name in card.checksums:
            checked(folder, card, name)
    return card


def write_card(folder: str | os.PathLike[str], card: Card) -> Card:
    """Write `card.json` atomically, with the checksums of the files next to it.

    Returns:
        The card as `read_card` reads it: characters that are not printable are replaced by their escapes.

    Raises:
        BadCard: a file of the model is missing, or a field has a value that could not be read back.
    """
    folder = Path(folder)
    path = folder / CARD
    names = SUMMED if card.quantized is None else (*SUMMED, INT8)
    fields = dataclasses.asdict(dataclasses.replace(card, checksums={name: _sha256(folder / name) for name in names}))
    fields = {key: value for key, value in fields.items() if key not in _OPTIONAL or value != _OPTIONAL[key]}
    try:
        text = json.dumps(_printable(fields), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BadCard(f"{path} cannot be written ({error}): use JSON types in all fields") from None
    card = _parse(json.loads(text), path)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return card


def read_weights(folder: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read weights.safetensors, after comparing its checksum.

    Returns:
        Tensor name -> array.

    Raises:
        BadCard: the file is missing, altered, no safetensors file, or contains NaN or Inf.
    """
    path = checked(folder, read_card(folder, verify=False), WEIGHTS)
    try:
        tensors: dict[str, NDArray[Any]] = load_safetensors(path.read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise BadCard(f"{path} is not a safetensors file ({error}): copy or export the model again") from None
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise BadCard(f"{path}: tensor {name!r} contains NaN or Inf, so training diverged: use another model")
    return tensors


def checked(folder: str | os.PathLike[str], card: Card, name: str) -> Path:
    """Path of one of the model's files, after comparing its checksum with the card's.

    Raises:
        BadCard: the file is missing or differs.
    """
    path = Path(folder) / name
    found, expected = _sha256(path), card.checksums[name]
    if found != expected:
        raise BadCard(
            f"{path} is not the file that {CARD} describes (SHA-256 {found[:12]}..., expected {expected[:12]}...): "
            "the file was altered, or the copy is incomplete: copy or export the model again"
        )
    return path


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object strictly.

    Keys are unique, nesting is at most MAX_DEPTH deep, numbers are finite and below 2^63, and texts are printable.

    Args:
        path: the file.
        remedy: how to fix a wrong file, for the message.

    Raises:
        BadCard: the file cannot be read or is not such an object.
    """
    try:
        fields = json.loads(path.read_bytes(), object_pairs_hook=_unique)
        _check_values(fields)
    except FileNotFoundError:
        raise BadCard(f"{path} is missing: the folder is not a model folder, or is incomplete: {remedy}") from None
    except OSError as error:
        raise BadCard(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise BadCard(f"{path} is not valid JSON ({error}): {remedy}") from None
    if not isinstance(fields, dict):
        raise BadCard(f"{path} does not contain a JSON object: {remedy}")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _check_values(value: Any, at: str = "", depth: int = 0) -> None:
    """Raise ValueError for the first value that is not safe to print or to compute with."""
    if depth > MAX_DEPTH:
        raise ValueError(f"objects are nested more than {MAX_DEPTH} deep")
    if isinstance(value, str) and (found := UNPRINTABLE.search(value)):
        raise ValueError(f"the character {found[0]!a} is not allowed{at and f' in {at}'}")
    if isinstance(value, int | float) and not abs(value) < 2**63:  # also NaN
        raise ValueError(f"numbers must be finite and below 2^63{at and f', unlike {at}'}")
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            _check_values(key, at, depth)
            _check_values(one, f"{at}.{key}" if at else str(key), depth + 1)


def _printable(value: Any) -> Any:
    """The value with characters that `read_json` rejects as backslash escapes: file names may contain them."""
    if isinstance(value, str):
        return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(one) for key, one in value.items()}
    return [_printable(one) for one in value] if isinstance(value, list | tuple) else value


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise BadCard(f"{path} is missing: the model folder is incomplete: copy or export the model again") from None
    except OSError as error:
        raise BadCard(f"{path} cannot be read ({error.strerror}): check its type and permissions") from None


def _parse(fields: dict[str, Any], path: Path) -> Card:
    """Build the card from the fields of the file `path`. Raises BadCard."""
    version = fields.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION or isinstance(version, bool):  # first: another version has other fields
        raise BadCard(
            f"{path} has format version {version!r}; this fairweather reads version {FORMAT_VERSION}: "
            "install the release that wrote it, or export the model again with this one"
        )
    fields = {**_OPTIONAL, **fields}
    _check_fields(fields, _FIELDS, path)
    if fields["generator"] not in GENERATOR_NAMES:
        raise BadCard(
            f"{path}: generator {fields['generator']!r} is not one of {', '.join(GENERATOR_NAMES)}: "
            "correct it, or install the release that has it"
        )
    if (fields["output"] == "maps") != (fields["maps"] is not None):
        raise BadCard(f'{path}: field "maps" is required for output "maps" and for no other: export the model again')
    if (fields["quantized"] is not None) != (INT8 in fields["checksums"]):
        raise BadCard(f'{path}: field "quantized" and a checksum of {INT8} require each other: quantize it again')
    maps = state = None
    if fields["maps"] is not None:
        _check_fields(fields["maps"], _MAPS_FIELDS, path, "maps.")
        maps = MapsSpec(**fields["maps"])
    if fields["state"] is not None:
        _check_fields(fields["state"], _STATE_FIELDS, path, "state.")
        state = StateSpec(**fields["state"])
        if fields["multiple_of"] % state.stride:
            raise BadCard(f"{path}: state.stride must divide multiple_of: export the model again with this release")
    return Card(**{**fields, "maps": maps, "state": state, "picture_range": (0.0, 1.0)})


Check = tuple[Callable[[Any], bool], str]
"""Whether a value is valid, and in words what it must be."""


def _check_fields(fields: dict[str, Any], checks: Mapping[str, Check], path: Path, at: str = "") -> None:
    remedy = "export the model again with this release"
    if missing := [key for key in checks if key not in fields]:
        raise BadCard(f"{path} lacks the field {', '.join(at + key for key in missing)}: {remedy}")
    if unknown := [key for key in fields if key not in checks]:
        raise BadCard(f"{path} has an unknown field {', '.join(at + key for key in unknown)}: remove it, or {remedy}")
    for key, (fits, words) in checks.items():
        if not fits(fields[key]):
            raise BadCard(f"{path}: field {at}{key} must be {words}, not {json.dumps(fields[key])[:80]}: {remedy}")


def _is_number(value: Any, low: float = -1e9, high: float = 1e9) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_score(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) - {"input", "spread", "worse"} == {"metric", "protocol", "data", "n", "value"}
        and all(isinstance(value[key], str) for key in ("metric", "protocol", "data"))
        and isinstance(value["n"], int)
        and _is_number(value["value"])
        and all(value.get(key) is None or _is_number(value[key]) for key in ("input", "spread", "worse"))
    )


def _is_quantized(value: Any) -> bool:
    """Whether a record has everything that `fairweather info` prints about a quantized network."""
    try:
        return (
            isinstance(value["method"], str)
            and isinstance(value["passed"], bool)
            and isinstance(value["layers"], int)
            and isinstance(value["float_layers"], dict)
            and isinstance(value.get("calibration", {}), dict)
            and all(isinstance(one, str) for one in value.get("failures", []))
            and all(_is_number(one["psnr"]) and "photos" in one for one in value["parity"].values())
            and all(one["change"] is None or _is_number(one["change"]) for one in value["parity"].values())
            and all(_is_number(value["cost"]["ms"][key]) for key in ("f32", "int8"))
            and all(_is_number(value["cost"]["megabytes"][key]) for key in (ONNX, INT8))
            and {"photo", "engine"} <= set(value["cost"])
            and "data" in value
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _whole(low: int, high: int) -> Check:
    return (lambda v: type(v) is int and low <= v <= high), f"a whole number from {low} to {high}"


def _one_of(*values: str) -> Check:
    return (lambda v: v in values), " or ".join(f'"{value}"' for value in values)


def _optional(check: Check) -> Check:
    return (lambda v: v is None or check[0](v)), f"{check[1]}, or null"


_TEXT: Check = ((lambda v: isinstance(v, str)), "a text")
_OBJECT: Check = ((lambda v: isinstance(v, dict)), "an object")
_FIELDS: dict[str, Check] = {
    "name": (lambda v: isinstance(v, str) and v != "" and not set(v) & set("/\\\n\t"), "a name without slashes"),
    "weather": (lambda v: isinstance(v, str) and v != "" and not set(v) & set("\n\t"), "a text of one line"),
    "generator": _TEXT,
    "arguments": _OBJECT,
    "output": _one_of("image", "maps"),
    "multiple_of": _whole(1, 4096),
    "receptive_field": _optional(_whole(1, 1 << 20)),
    "maps": _optional(_OBJECT),
    "training": _OBJECT,
    "scores": (
        lambda v: isinstance(v, list) and all(map(_is_score, v)),
        "a list of objects, each with metric, protocol, data, n, value (and input, spread, worse)",
    ),
    "licence": _TEXT,
    "terms": _TEXT,
    "bytes_per_pixel": (lambda v: _is_number(v, 0, 1e7), "a number from 0 to 1e7"),
    "description": _TEXT,
    "direction": _one_of("restore", "degrade"),
    "choice": _TEXT,
    "most_pixels": _whole(0, 1 << 40),
    "state": _optional(_OBJECT),
    "quantized": _optional((_is_quantized, "an object with method, passed, layers, float_layers, data, parity, cost")),
    "picture_range": (lambda v: isinstance(v, list) and v == [0, 1], "[0, 1]"),
    "checksums": (
        lambda v: (
            isinstance(v, dict) and set(v) - {INT8} == set(SUMMED) and all(isinstance(one, str) for one in v.values())
        ),
        f"an object with the SHA-256 of {' and '.join(SUMMED)} (and of {INT8} for a quantized model)",
    ),
    "format_version": _whole(FORMAT_VERSION, FORMAT_VERSION),
}
_OPTIONAL: dict[str, Any] = {"direction": "restore", "choice": "", "most_pixels": 0, "state": None, "quantized": None}
"""Optional fields of a card, with their defaults."""
_MAPS_FIELDS: dict[str, Check] = {
    "size": _whole(1, 8192),
    "radius": _whole(0, 256),
    "eps": (lambda v: _is_number(v, 1e-12, 1e3), "a number from 1e-12 to 1e3"),
}
_STATE_FIELDS: dict[str, Check] = {"channels": _whole(1, 1 << 16), "stride": _whole(1, 4096)}
