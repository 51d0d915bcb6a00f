"""All notes: their claims, their pictures, and one page of them.

python experiments/notes                        # writes runs/notes/index.html
python experiments/notes --only plinko objective
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import note
import tyro
from page import Section, page
from rich.console import Console

from ddpm_jax.devices.setup import set_up_jax

Name = Literal[
    "marginal",
    "objective",
    "many_modes",
    "plinko",
    "brownian_limit",
    "without_the_target",
    "spectral",
    "perspectives",
    "one_process",
]
NAMES: tuple[Name, ...] = Name.__args__  # in the order in which they build on each other


@dataclass(frozen=True)
class Options(note.Options):
    """Which notes, and where they go."""

    only: tuple[Name, ...] = NAMES
    """The notes to run."""


def main() -> None:
    """Run the notes; exit status 1 if a claim does not hold."""
    options = tyro.cli(Options, description="The notes: claims, pictures, and one page of them.")
    set_up_jax()
    console, sections = Console(), []
    for name in options.only:
        one = import_module(name).NOTE
        findings, seconds = one.run(options.output, console)
        sections.append(Section(one, findings.claims, options.output / f"{name}.png", seconds))
    path = options.output / "index.html"
    path.write_text(page(sections), encoding="utf-8")
    failed = sum(not claim.holds for section in sections for claim in section.claims)
    seconds = sum(section.seconds for section in sections)
    console.print(f"{path}: {f'{failed} claims fail' if failed else 'every claim holds'} ({seconds:.0f} s)")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
