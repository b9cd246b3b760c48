"""The command line: a verb is a function that is imported when it is asked for.

Errors become one line on stderr and an exit code here, nowhere else:

    0    all done
    1    a FairweatherError: nothing, or not all, was done
    n    `restore`: how many pictures failed (100 at most); the others are done
    2    a command line that cannot be understood
    130  Ctrl-C

This file imports nothing but the standard library's lightest, so that `fairweather --help` is instant.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

PAGE = """\
fairweather takes the weather out of pictures: haze and rain, on a machine with or without a GPU.

Clear pictures
  fairweather restore IN... [-o OUT] [--weather auto|haze|rain|both|none | --model NAME|PATH]
                            [--strength S] [--no-guard] [--overwrite]
                            [--engine auto|openvino|onnxruntime|torch|...] [--precision auto|f32|bf16|int8]
                            [--memory 2GB] [--cluster local|ray://HOST:PORT]
                            films: [--start T] [--end T] [--preview side|split] [--no-steady] [--film --fps N]
      IN is a photo, a clip, a folder (searched through, its structure kept) or a pattern. OUT is a folder,
      or a picture or clip if there is one IN; without it results go to restored/. Inputs are never written
      over. Each is looked at first: what is clear is copied, the rest loses the weather seen in it.
  fairweather serve [--host ADDRESS] [--port N] [--models FOLDER...] [--memory 2GB]
      The same as a page in the browser and as an HTTP API, on this machine alone unless --host says more.

Make the model that clears them
  fairweather train RECIPE --data DIR | --degraded DIR --clear DIR
                           [--generator G] [--config runs/x.toml] [--out RUN]
                           [--steps N | --epochs N | --minutes M] [--seed N] [--devices N] [--resume]
                           [--checkpoint-steps N | --checkpoint-minutes M] [--start RUN|MODEL]
      RECIPE is cyclegan, claritygan or derain (unpaired photos), pix2pix, hazeheal or supervised (pairs),
      or clips (pairs and made weather that moves).
      A --config gives defaults, flags win. The run folder holds the model, what it learned from, and
      all that resuming needs.
  fairweather plot RUN... [-o FILE]
      Draw the losses of a run, in progress or ended, or of several runs over each other.
  fairweather synthesize haze|rain IN -o OUT [--seed N] [--model DEGRADER]
      Put weather over clear photos, computed or learned. With -o SET/hazy for the photos in SET/clear, SET
      holds pairs.
  fairweather evaluate --model M --data DIR [--protocol rgb] [--out DIR] [--sheet N|all] [--photos]
      Score a model on pairs: PSNR and SSIM by a named protocol, photo by photo too, and sheets to look at.
  fairweather evaluate --model M --unpaired DIR [--out DIR] [--sheet N|all] [--photos] [--no-guard]
      For photos without a truth: what the model changes in contrast, clipping, colour, noise and haze.
  fairweather export RUN|MODEL -o DIR [--direction restore|degrade]
      Turn a run, ended or not, into a model folder for `restore`, checked against the network it came from.
      To degrade is what unpaired recipes learn as well: weather for clear photos.

  fairweather quantize MODEL --method dynamic|static|qat [--data DIR] -o DIR [--force]
      The same model with a network in int8 beside the other, compared with it on your photos; the card says
      what it costs. `restore --precision int8` runs it.

See what there is
  fairweather check-data DIR [--against DIR2] [--fast] [--all] [--json FILE]
      What is wrong with training data: broken files, pairs that do not fit, copies, frames, leaks.
  fairweather models           the models that come with fairweather, and their scores
  fairweather info MODEL       one model's card: what it is, what trained it, on what terms

fairweather VERB --help tells all of a verb's options; fairweather --version the version.
"""

VERBS = {
    "restore": "restore",
    "train": "train",
    "plot": "plot",
    "synthesize": "synthesize",
    "evaluate": "evaluate",
    "export": "export",
    "quantize": "quantize",
    "check-data": "check_data",
    "serve": "serve",
    "models": "models",
    "info": "models",
}
"""Verb -> the module under fairweather.verbs that has a function of the verb's name (with _ for -)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. `argv` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a name that is not UTF-8 is printed with such bytes as \\udcff
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if argv is None and arguments[:1] == ["train"]:
            from fairweather.training.allocator import restart_tuned

            restart_tuned()  # half of the time on a CPU; only where this process is ours to start again
        code = _main(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("fairweather: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`fairweather models | head -1`). Python would complain once more
        # while flushing stdout at exit, so stdout is pointed at nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _main(arguments: list[str]) -> int:
    if not arguments:
        print(PAGE, end="", file=sys.stderr)
        return 2
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-h", "--help", "help"):
        print(PAGE, end="")
        return 0
    if verb in ("-V", "--version"):
        from fairweather import __version__

        print(f"fairweather {__version__}")
        return 0
    if verb not in VERBS:
        return _unknown(verb)
    return _guarded(verb, rest)


def _unknown(verb: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(verb, VERBS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    print(f"fairweather: no verb is called {verb!r}{hint} (fairweather --help lists them)", file=sys.stderr)
    return 2


def _guarded(verb: str, arguments: list[str]) -> int:
    """Run a verb; the one place where errors become messages and exit codes."""
    import logging

    from fairweather.errors import FairweatherError

    class Handler(logging.Handler):
        """Looks stderr up at every line: while a progress bar is drawn, rich stands there and keeps the bar below."""

        def emit(self, record: logging.LogRecord) -> None:
            print(self.format(record), file=sys.stderr, flush=True)

    handler = Handler()
    handler.setFormatter(logging.Formatter("fairweather: %(message)s"))
    logger = logging.getLogger("fairweather")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return _run(verb, arguments)
    except FairweatherError as error:
        message = " ".join(str(error).split("\n"))
        print(f"fairweather: error: {message}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or error.filename is None:
            raise
        # The first look at any path raises this, in whatever module that is: no file has such a name.
        print(f"fairweather: error: {error.filename}: the name is too long; check it", file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        extra = EXTRAS.get((missing.name or "").partition(".")[0])
        if extra is None:
            raise
        from fairweather.errors import MissingExtra

        print(f"fairweather: error: {MissingExtra(str(missing.name), extra, f'fairweather {verb}')}", file=sys.stderr)
        return 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


EXTRAS = {
    "torch": "train",
    "lightning": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "onnx": "train",
    "onnxscript": "train",
    "torchao": "quantize",
    "onnxruntime": "onnxruntime",
    "skimage": "evaluate",
    "ray": "cluster",
    "pillow_heif": "photo",
    "av": "video",
    "gradio": "web",
    "fastapi": "web",
    "starlette": "web",
    "uvicorn": "web",
}
"""Module -> the extra that installs it, for verbs that find it missing."""


def _run(verb: str, arguments: list[str]) -> int:
    from importlib import import_module

    module = import_module(f"fairweather.verbs.{VERBS[verb]}")
    function: Callable[..., int | None] = getattr(module, verb.replace("-", "_"))
    prog = f"fairweather {verb}"
    try:
        if hasattr(module, "parse"):  # what may be said depends on what was said: see verbs/train.py
            return module.parse(arguments, prog)() or 0
        import tyro

        return tyro.cli(function, args=arguments, prog=prog, config=(tyro.conf.FlagCreatePairsOff,)) or 0
    except SystemExit as leaving:  # tyro: 0 after --help, 2 after a usage error
        return leaving.code if isinstance(leaving.code, int) else 1
