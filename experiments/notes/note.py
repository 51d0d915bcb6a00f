"""What every note is made of: claims, each a measured number beside the theory's; one picture; one derivation.

A note is a pair of files: NAME.py measures and draws, NAME.md derives.

    python experiments/notes/NAME.py        prints the claims, writes NAME.png (--output FOLDER, or runs/notes)
    python experiments/notes                all of them, and one page, index.html
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ddpm_jax.devices.setup import set_up_jax

Relation = Literal["=", "<", ">"]

# Seven inches: text of 9.5 points is 15 pixels high in a picture 800 pixels wide, and 8 in one of 420.
SIZE, DOTS = (7.0, 4.6), 200
STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "legend.fontsize": 8.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Okabe and Ito's colours, which all eyes tell apart.
    "axes.prop_cycle": "cycler('color', ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#555555'])",
}

# Lines that differ by more than their colours, for prints in grey.
DASHES = ("-", "--", "-.", ":")


class Claim(NamedTuple):
    """A number that was measured, and what it has to be."""

    says: str
    """What the number is."""
    measured: float
    theory: float
    """The value that the theory gives, or with `relation` the limit."""
    tolerance: float
    """How far `measured` may be off; 0 for a limit."""
    because: str
    """Where the theory's value and the tolerance come from."""
    relation: Relation = "="
    """Equal within the tolerance; at most; at least."""

    @property
    def holds(self) -> bool:
        """Whether the number is what it has to be; never for NaN."""
        if self.relation == "=":
            return bool(abs(self.measured - self.theory) <= self.tolerance)
        excess = self.measured - self.theory if self.relation == "<" else self.theory - self.measured
        return bool(excess <= self.tolerance)

    @property
    def expected(self) -> str:
        """The theory's value and the tolerance, in words."""
        if self.relation == "=":
            return f"{number(self.theory)} ± {number(self.tolerance)}"
        return f"{'at most' if self.relation == '<' else 'at least'} {number(self.theory)}"


class Findings(NamedTuple):
    """What a note measured."""

    claims: list[Claim]
    shown: dict[str, Any]
    """What its picture is drawn from: the keyword arguments of `draw`."""


@dataclass(frozen=True)
class Note:
    """One idea: measure() gives findings, draw(figure, **shown) fills a Matplotlib figure."""

    file: str
    """The note's own `__file__`."""
    title: str
    idea: str
    """The picture's caption: what to see in it, in a sentence or two."""
    measure: Callable[..., Findings]
    draw: Callable[..., None]

    @property
    def name(self) -> str:
        return Path(self.file).stem

    @property
    def derivation(self) -> str:
        """Markdown, with formulas between dollars."""
        return Path(self.file).with_suffix(".md").read_text(encoding="utf-8")

    def figure(self, findings: Findings) -> Any:
        """The picture as a Matplotlib figure."""
        import matplotlib as mpl  # pyright: ignore[reportMissingImports]
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

        with mpl.rc_context(STYLE):
            figure = Figure(figsize=SIZE, layout="constrained")
            self.draw(figure, **findings.shown)
            figure.draw_without_rendering()
        return figure

    def picture(self, findings: Findings, folder: Path) -> Path:
        """Draw and write the picture."""
        import matplotlib as mpl  # pyright: ignore[reportMissingImports]

        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):  # colours such as C0 are looked up as it is saved
            self.figure(findings).savefig(folder / f"{self.name}.png", dpi=DOTS)
        return folder / f"{self.name}.png"

    def run(self, folder: Path, console: Console) -> tuple[Findings, float]:
        """Measure, draw, print; the findings, and the seconds that this took."""
        start = time.monotonic()
        findings = self.measure()
        path = self.picture(findings, folder)
        seconds = time.monotonic() - start
        console.print(table(self.title, findings.claims))
        console.print(f"[dim]{path}, {seconds:.0f} s[/dim]\n")
        return findings, seconds

    def main(self) -> None:
        """The command line of one note: exit status 1 if a claim does not hold."""
        folder = tyro.cli(Options, description=f"{self.title}. {self.idea}").output
        set_up_jax()
        findings, _ = self.run(folder, Console())
        raise SystemExit(0 if all(claim.holds for claim in findings.claims) else 1)


@dataclass(frozen=True)
class Options:
    """Where things go."""

    output: Path = Path("runs/notes")
    """The folder for pictures and page."""


def photograph(size: int) -> np.ndarray:
    """A temple, one of the photographs that scikit-learn ships: float32 [size, size, 3] in [-1, 1]."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("china.jpg")
    square = Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX, (0, 0, len(pixels), len(pixels)))
    return np.asarray(square, np.float32) / 127.5 - 1


def show(axes: Any, image: Any) -> None:
    """An image in [-1, 1], [height, width, 3], without ticks; values beyond are cut."""
    axes.imshow(np.clip(np.asarray(image) / 2 + 0.5, 0, 1))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def number(value: float) -> str:
    """Three or four digits, without an exponent where it is not needed."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"


def table(title: str, claims: list[Claim]) -> Table:
    """The claims as a table for the terminal."""
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("claim")
    rows.add_column("measured", justify="right")
    rows.add_column("theory", justify="right")
    rows.add_column("because")
    rows.add_column("")
    for claim in claims:
        verdict = "[green]holds[/green]" if claim.holds else "[bold red]FAILS[/bold red]"
        rows.add_row(escape(claim.says), number(claim.measured), claim.expected, escape(claim.because), verdict)
    return rows
