"""The error tree: everything fairweather raises on purpose.

    FairweatherError
    ├── UnknownName      a model, generator, recipe, engine or protocol that does not exist here
    ├── BadImage         a picture that cannot be read, decoded or written
    ├── BadFolder        a folder that is missing, empty, unmatched, or cannot be written
    ├── BadCard          a model folder that is incomplete, altered, or of another version
    ├── BadSettings      a setting that is misspelt, out of range, or in conflict with another
    ├── ParityFailed     an exported model whose output differs from its source's
    └── MissingExtra     an optional dependency that is needed but not installed

Every message names the file or the setting, and how to fix it. The command line prints it as one line
and exits with a non-zero code; nothing else turns an error into an exit.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FairweatherError(Exception):
    """The root of the tree; catch this to catch everything fairweather raises on purpose."""


class UnknownName(FairweatherError):
    """A name that does not exist; the message lists the available names and suggests the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}{hint} (available: {', '.join(known) or 'none'})")


class BadImage(FairweatherError):
    """A picture that cannot be read, decoded or written."""


class BadFolder(FairweatherError):
    """A folder that is missing, empty, unmatched, or cannot be written."""


class BadCard(FairweatherError):
    """A model folder that is incomplete, altered, or of a version that this release does not read."""


class BadSettings(FairweatherError):
    """A setting that is misspelt, out of range, or in conflict with another."""


class ParityFailed(FairweatherError):
    """An exported model whose output differs from that of its source network."""


class MissingExtra(FairweatherError):
    """An optional dependency that is needed but not installed."""

    def __init__(self, module: str, extra: str | None, purpose: str) -> None:
        """`extra` installs the module; None if the module is part of the default install."""
        what = f"'fairweather[{extra}]'" if extra else module
        super().__init__(f"{purpose} needs {module!r}, which is not installed: pip install {what}")
