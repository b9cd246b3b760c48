"""`python -m fairweather` is `fairweather`."""

from __future__ import annotations

from fairweather.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
