"""The command line: finds the command's function, and turns errors into one line and an exit code.

    0    success
    1    an error: a FairweatherError, printed as one line; nothing, or only a part, was done
    2    a usage error: an unknown command, option or value
    3    some inputs failed, the others are done (`restore`, `synthesize`, `evaluate`); errors found (`check-data`)
    130  interrupted with Ctrl-C
    141  the reader of the output closed the pipe

This file imports only light modules of the standard library, so that `fairweather --help` is instant.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

PAGE = """\
fairweather removes haze and rain from photos and videos, with or without a GPU.

Restore
  fairweather restore IN... [-o OUT] [--weather auto|haze|rain|both|none | --model NAME|PATH]
                            [--strength S] [--no-guard] [--overwrite]
                            [--engine auto|openvino|onnxruntime|torch|...] [--precision auto|f32|bf16|int8]
                            [--memory 2GB] [--cluster local|ray://HOST:PORT]
                            videos: [--start T] [--end T] [--preview side|split] [--no-smooth]
                            folders of frames: [--video] [--fps N]
      IN is a photo, a video, a folder (searched recursively) or a quoted pattern. OUT is a folder, or a file
      if there is one IN; default: restored/. Inputs are never overwritten. By default, the weather in each
      input is detected; clear inputs are copied unchanged.
  fairweather serve [--host ADDRESS] [--port N] [--models FOLDER...] [--memory 2GB]
      Web page and HTTP API, on this machine only unless --host is given.

Train
  fairweather train RECIPE --data DIR | --degraded DIR --clear DIR
                           [--generator G] [--config runs/x.toml] [--out RUN]
                           [--steps N | --epochs N | --minutes M] [--seed N] [--devices N] [--resume]
                           [--checkpoint-steps N | --checkpoint-minutes M] [--start RUN|MODEL]
      RECIPE is cyclegan, claritygan or derain (unpaired photos), pix2pix, hazeheal or supervised (pairs), or
      supervised_video (video clips with ground truth). Flags override --config. The run folder contains
      the model, logs, sample sheets and the checkpoints for --resume.
  fairweather plot RUN... [-o FILE]
      Plot the losses of one run, or of several in one figure.
  fairweather synthesize haze|rain IN -o OUT [--seed N] [--model DEGRADER]
      Add computed or learned weather to clear photos. With IN = SET/clear and -o SET/hazy, SET becomes a
      data set of pairs.
  fairweather evaluate --model M --data DIR [--protocol rgb] [--out DIR] [--sheet N|all] [--photos]
      Score a model on pairs: PSNR and SSIM by a named protocol, per photo, and comparison sheets.
  fairweather evaluate --model M --unpaired DIR [--out DIR] [--sheet N|all] [--photos] [--no-guard]
      Measure without ground truth how the model changes contrast, clipping, colour, noise and haze.
  fairweather export RUN|MODEL -o DIR [--direction restore|degrade]
      Write a model folder for `restore`, verified against the trained network. Unpaired recipes also learn
      to degrade, i.e. to add weather to clear photos.
  fairweather quantize MODEL --method dynamic|static|qat [--data DIR] -o DIR [--force]
      Add an int8 network to a model, compared with the original on your photos; `restore --precision int8`
      uses it.

Inspect
  fairweather check-data DIR [--against DIR2] [--fast] [--all] [--json FILE]
      Find broken files, mismatched pairs, duplicates, borders and leaks in training data.
  fairweather models           list the models that come with fairweather, and their scores
  fairweather info MODEL       show a model's card: architecture, training data, scores, licence

fairweather COMMAND --help lists all options of a command, fairweather --version prints the version.
Exit codes: 0 success, 1 error, 2 usage error, 3 some inputs failed, 130 interrupted.
"""

COMMANDS = {
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
"""Command -> the module in fairweather.commands with a function of the command's name (with _ for -)."""

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
"""Module -> the extra that installs it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the arguments without the program's name; default: those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # file names that are not UTF-8 are printed with escapes such as \\udcff
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    command = arguments[0] if arguments else ""
    try:
        if command not in COMMANDS:
            return _without_command(command)
        if argv is None and command == "train":
            from fairweather.training.allocator import restart_tuned

            restart_tuned()  # halves the time on a CPU; only in a process of our own
        from importlib import import_module

        module = import_module(f"fairweather.commands.{COMMANDS[command]}")
        with _log_to_stderr():
            if hasattr(module, "parse"):  # the options of `train` depend on its arguments
                code = module.parse(arguments[1:], f"fairweather {command}")() or 0
            else:
                import tyro

                function = getattr(module, command.replace("-", "_"))
                code = tyro.cli(function, args=arguments[1:], prog=f"fairweather {command}") or 0
        sys.stdout.flush()
        return int(code)
    except SystemExit as leaving:  # tyro: 0 or None after --help and completion scripts, 2 after a usage error
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except KeyboardInterrupt:
        print("fairweather: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The pipe is closed (`fairweather models | head -1`). Python would report it again when it flushes stdout at
        # exit, so stdout is redirected to nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if (message := _error_message(error, command)) is None:
            raise
        print(f"fairweather: error: {message}", file=sys.stderr)
        return 1


def _without_command(command: str) -> int:
    """Help, the version, or a usage error."""
    if command in ("-h", "--help", "help"):
        print(PAGE, end="", flush=True)
        return 0
    if command in ("-V", "--version"):
        from fairweather import __version__

        print(f"fairweather {__version__}")
        return 0
    if not command:
        print(PAGE, end="", file=sys.stderr)
        return 2
    from difflib import get_close_matches

    near = get_close_matches(command, COMMANDS, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ":"
    print(f"fairweather: unknown command {command!r}{hint} fairweather --help lists the commands", file=sys.stderr)
    return 2


def _error_message(error: Exception, command: str) -> str | None:
    """The error in one line; None for a bug, which keeps its traceback."""
    from fairweather.errors import FairweatherError, MissingExtra

    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            return None
        error = MissingExtra(str(error.name), extra, f"fairweather {command}")
    if isinstance(error, FairweatherError):
        return " ".join(str(error).split("\n"))
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG and error.filename is not None:
        return f"{error.filename}: the name is too long: use a shorter one"  # raised by the first access to any path
    return None


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Print log messages of the package on stderr."""
    import logging

    class Handler(logging.Handler):
        """Resolves stderr at each message: while a progress bar is shown, rich replaces it."""

        def emit(self, record: logging.LogRecord) -> None:
            print(self.format(record), file=sys.stderr, flush=True)

    handler, logger = Handler(), logging.getLogger("fairweather")
    handler.setFormatter(logging.Formatter("fairweather: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
