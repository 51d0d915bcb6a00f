"""What the options of several commands share."""

from typing import Annotated, Any, TypeAlias, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

__all__ = ["Average", "RunFolder", "by_default", "one_of", "parse"]

Options = TypeVar("Options")


def parse(options: type[Options], arguments: list[str], command: str) -> Options:
    """The options of a command.

    Args:
        options: the dataclass of the options.
        arguments: what follows the command on the command line.
        command: the name of the command.
    """
    config = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(options, args=arguments, prog=f"ddpm-jax {command}", config=config)


def by_default(text: str, metavar: str | None = None) -> Any:
    """The annotation of an option that is None by default.

    Args:
        text: what None stands for, as the help shows it.
        metavar: the name of the value; None for that of its type.
    """
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


def one_of(*choices: str | int) -> PrimitiveConstructorSpec[Any]:
    """An option that takes one of these values; None can be its default, but cannot be typed.

    For `Literal[...] | None`, tyro would list None too, in an arbitrary order.
    """
    values = {str(choice): choice for choice in choices}
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(values)}}}",
        instance_from_str=lambda arguments: values[arguments[0]],
        is_instance=lambda value: value is None or value in choices,
        str_from_instance=lambda value: [str(value)],
        choices=tuple(values),
    )


RunFolder: TypeAlias = Annotated[str, tyro.conf.arg(metavar="RUN", help="The folder of the run."), tyro.conf.Positional]
Average: TypeAlias = Annotated[
    float | None,
    tyro.conf.arg(
        help="The average of the parameters to use: a decay or width that the run kept, or any width for PowerEma.",
        help_behavior_hint="(default: the first that the run kept)",
    ),
]
