"""The error tree: everything fairweather raises on purpose.

    FairweatherError
    ├── UnknownName      a model, generator, recipe, engine or protocol that does not exist here
    ├── BadImage         a picture that cannot be read, decoded or written
    ├── BadFolder        a folder that is missing, empty, unmatched, or cannot be written
    ├── BadCard          a model folder that is incomplete, altered, or of another version
    ├── BadSettings      a setting that is misspelt, out of range, or at odds with another
    ├── ParityFailed     an exported model that does not give what its source gives
    └── MissingExtra     an optional dependency that is needed now and not installed

Every message names the file or the setting, and the remedy. The command line prints it as one line
and exits with a non-zero code; nothing else turns an error into an exit.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FairweatherError(Exception):
    """The root of the tree; catch this to catch everything fairweather raises on purpose."""


class UnknownName(FairweatherError):
    """A name that is not among the ones on offer; the message lists them and the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        super().__init__(f"no {kind} is called {name!r}{hint} (there are: {', '.join(known) or 'none'})")


class BadImage(FairweatherError):
    """A picture that cannot be read, decoded or written."""


class BadFolder(FairweatherError):
    """A folder that is missing, empty, unmatched, or cannot be written."""


class BadCard(FairweatherError):
    """A model folder that is incomplete, altered, or of a version that this release does not read."""


class BadSettings(FairweatherError):
    """A setting that is misspelt, out of range, or at odds with another."""


class ParityFailed(FairweatherError):
    """An exported model whose pictures are not those of the network it was made from."""


class MissingExtra(FairweatherError):
    """An optional dependency that is needed now and not installed."""

    def __init__(self, module: str, extra: str | None, purpose: str) -> None:
        """`extra` is the one that brings the module; None where the default install should have."""
        what = f"'fairweather[{extra}]'" if extra else module
        super().__init__(f"{purpose} needs {module!r}, which is not installed: pip install {what}")
