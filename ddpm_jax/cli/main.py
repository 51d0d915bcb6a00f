"""The command line `ddpm-jax`, and what makes an experiment file runnable.

Nothing heavy is imported until a command needs it.  Wrong input ends with one message and exit status 2
(DDPM_JAX_DEBUG=1 shows the traceback).
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

COMMANDS = ("train", "sample", "evaluate", "import", "export", "prepare", "check")
USAGE = """\
usage: ddpm-jax COMMAND ...

Denoising diffusion probabilistic models in JAX and Flax.

  train EXPERIMENT [--workdir DIR] [--dry-run] [overrides]
        train an experiment, a Python file or the experiment.json of a run;
        in a folder that holds a run of it already, go on with that
  sample RUN [--num-images N] [--output FILE.npz] [--seed S] [--sampler NAME] [--steps K] [--ema PROFILE]
        draw images from a trained run: uint8 in an .npz, and a picture
  evaluate RUN [--metrics fid,kid,pr,nn,bpd] [--num-samples N] [--features NAME] [--sampler NAME] [--steps K]
        score a trained run: a table, a JSON file and an HTML page with all that the numbers depend on
  import PATH [--output RUN]
        make a run of a network that diffusers wrote: it samples, and goes on training
  export RUN PATH [--ema PROFILE] [--license ID]
        write a run's network for diffusers, with a model card
  prepare NAME SOURCE [--data-dir DIR]
        write a TFDS data set from an .npz or a folder of images, without a network
  check DATA [--labels] [--size N]
        read a whole data set: counts, shapes, values, classes, and all that is wrong; exit status 1 for faults

`ddpm-jax COMMAND --help` tells more; `ddpm-jax train EXPERIMENT --help` lists every override.
"""


def main(arguments: list[str] | None = None) -> None:
    """The `ddpm-jax` command; arguments: those of the process unless given."""
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
    """Make an experiment file runnable: `python digits.py [--workdir DIR] [--dry-run] [overrides]`."""

    def train(arguments: list[str]) -> None:
        from ddpm_jax.cli.train import train_experiment

        train_experiment(experiment, arguments, f"python {sys.argv[0]}")

    _guarded(train, sys.argv[1:])


def _suggestion(word: str) -> str:
    """What was probably meant by a word that is no command."""
    if word.endswith((".py", ".json")):
        return f"; did you mean `ddpm-jax train {word}`?"
    near = difflib.get_close_matches(word.lstrip("-").lower(), COMMANDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    """A warning as a line for the user of a command, without a line of source code."""
    kind = "" if issubclass(category, UserWarning) else f"{category.__name__}: "
    return f"ddpm-jax: warning: {kind}{message}\n"


def _guarded(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command; what is the user's to mend ends with one message, exit status 2 and no traceback."""
    debug, format_before = os.environ.get("DDPM_JAX_DEBUG"), warnings.formatwarning
    if not debug:
        warnings.formatwarning = _one_line
    try:
        command(arguments)
    except KeyboardInterrupt:
        _fail("interrupted; a training goes on from its last checkpoint with the same command", status=130)
    except (RunError, OSError, ValueError) as error:
        if debug or (isinstance(error, ValueError) and not _refused_here(error)):
            raise
        _fail(_told(error))
    finally:
        warnings.formatwarning = format_before


def _told(error: Exception) -> str:
    """An error in one line; one of the operating system without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _refused_here(error: ValueError) -> bool:
    """Whether this package or an experiment file refused a value, rather than failed in some library."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    is_experiment = not any(part in ("site-packages", "dist-packages") for part in raised_in.parts)
    return Path(__file__).resolve().parent in raised_in.parents or is_experiment


def _fail(message: str, status: int = 2) -> NoReturn:
    shutdown.leave(status, f"ddpm-jax: {message}")
    print(f"ddpm-jax: {message}", file=sys.stderr)
    sys.exit(status)
