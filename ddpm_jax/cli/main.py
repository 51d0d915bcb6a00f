"""The command line `ddpm-jax`, and `launch`, which makes an experiment file a program.

A command imports its libraries when it runs.  Wrong input ends with one message and exit status 2;
DDPM_JAX_DEBUG=1 shows the traceback instead.
"""

import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ddpm_jax import __version__
from ddpm_jax.devices import shutdown
from ddpm_jax.errors import RunError

if TYPE_CHECKING:
    from ddpm_jax.training.experiment import Experiment

__all__ = ["launch", "main"]

COMMANDS = ("train", "sample", "evaluate", "import", "export", "prepare", "check")
USAGE = """\
usage: ddpm-jax COMMAND ...

Denoising diffusion probabilistic models in JAX and Flax.

  train EXPERIMENT      train an experiment (FILE.py or a run's experiment.json) or resume it; --dry-run prints its cost
  sample RUN            draw images from a trained run into an .npz file, with a picture
  evaluate RUN          score a trained run: a table, a JSON file and an HTML page
  import PATH           make a run from a network that diffusers wrote
  export RUN PATH       write the network of a run for diffusers, with a model card
  prepare NAME SOURCE   write a TFDS data set from an .npz file or a folder of images
  check DATA            read a whole data set, and list its faults

`ddpm-jax COMMAND --help` lists the options of a command; `ddpm-jax train EXPERIMENT --help` lists every override.
"""


def main(arguments: list[str] | None = None) -> None:
    """The command `ddpm-jax`.

    arguments: the command line without the program; None for that of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
    elif arguments[0] in ("-V", "--version", "version"):
        print(f"ddpm-jax {__version__}")
    elif arguments[0] not in COMMANDS:
        _fail(f"the command is {arguments[0]!r}; expected one of {', '.join(COMMANDS)}{_suggestion(arguments[0])}")
    else:
        module = {"import": "import_"}.get(arguments[0], arguments[0])
        _guarded(lambda rest: importlib.import_module(f"ddpm_jax.cli.{module}").main(rest), arguments[1:])


def launch(experiment: "Experiment") -> None:
    """Run an experiment file as a program: `python digits.py [--workdir DIR] [--dry-run] [overrides]`."""

    def train(arguments: list[str]) -> None:
        from ddpm_jax.cli.train import train_experiment

        train_experiment(experiment, arguments, f"python {sys.argv[0]}")

    _guarded(train, sys.argv[1:])


def _suggestion(word: str) -> str:
    """The end of a message about an unknown command: the command that was probably meant."""
    if word.endswith((".py", ".json")):
        return f"; did you mean `ddpm-jax train {word}`?"
    near = difflib.get_close_matches(word.lstrip("-").lower(), COMMANDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    """A warning as one line, without source code."""
    kind = "" if issubclass(category, UserWarning) else f"{category.__name__}: "
    return f"ddpm-jax: warning: {kind}{message}\n"


def _guarded(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command; an error that the user can fix ends with one message, exit status 2 and no traceback."""
    debug, format_before = os.environ.get("DDPM_JAX_DEBUG"), warnings.formatwarning
    if not debug:
        warnings.formatwarning = _one_line
    try:
        command(arguments)
    except KeyboardInterrupt:
        _fail("interrupted; the same command resumes a training from its last checkpoint", status=130)
    except (RunError, OSError, ValueError) as error:
        if debug or (isinstance(error, ValueError) and not _refused_here(error)):
            raise
        _fail(_message(error))
    finally:
        warnings.formatwarning = format_before


def _message(error: Exception) -> str:
    """An error as one line; an error of the operating system without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _refused_here(error: ValueError) -> bool:
    """Whether this package or an experiment file raised the error, rather than some library."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    package = Path(__file__).resolve().parents[1]
    return package in raised_in.parents or {"site-packages", "dist-packages"}.isdisjoint(raised_in.parts)


def _fail(message: str, status: int = 2) -> NoReturn:
    shutdown.leave(status, f"ddpm-jax: {message}")
    print(f"ddpm-jax: {message}", file=sys.stderr)
    sys.exit(status)
