"""One self-contained page of all notes: pictures inside, derivations with their formulas as MathML, no scripts."""

import base64
import html
import re
from pathlib import Path
from typing import NamedTuple

from note import Claim, Note, number

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.6 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 860px; margin: 0 auto;
  padding: 24px 16px 64px }
h1 { font-size: 28px; margin: 8px 0 4px } h2 { font-size: 22px; margin: 56px 0 4px }
nav ol { columns: 2; padding-left: 20px } a { color: #0059a8 }
figure { margin: 16px 0 } figure img { width: 100%; height: auto } figcaption, .soft { color: #5a5a5a }
table { border-collapse: collapse; font-size: 14px; line-height: 1.4 }
th { text-align: left } th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid #e4e4e4; vertical-align: top }
.number { white-space: nowrap; font-variant-numeric: tabular-nums }
@media (max-width: 700px) {
  nav ol { columns: 1 } table, tbody, tr, td { display: block } tr.head { display: none }
  tr { padding: 8px 0; border-bottom: 1px solid #e4e4e4 } td { padding: 1px 0; border: 0 }
  td[data-is]::before { content: attr(data-is) ": "; color: #5a5a5a }
  .number { white-space: normal } td.number { display: inline-block; margin-right: 18px }
  math { font-size: 92% } .formula math { font-size: 85% }
}
.holds { color: #00704f } .fails { color: #c22f00; font-weight: 700 }
code { background: #f3f3f3; padding: 1px 4px; border-radius: 3px; font-size: 85% }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", math; font-size: 105% }
.formula { display: flex; flex-wrap: wrap; justify-content: center; align-items: center; gap: 6px; margin: 14px 0 }
.formula math { margin: 0; max-width: 100%; overflow: auto hidden } .formula .apart { margin-right: 24px }
"""


class Section(NamedTuple):
    """A note that has run."""

    note: Note
    claims: list[Claim]
    picture: Path
    seconds: float


def page(sections: list[Section]) -> str:
    """The whole page."""
    title = "Diffusion models, step by step"
    held = sum(claim.holds for section in sections for claim in section.claims)
    count = sum(len(section.claims) for section in sections)
    seconds = sum(section.seconds for section in sections)
    links = (f'<li><a href="#{s.note.name}">{html.escape(s.note.title)}</a>' for s in sections)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>",
            "<p>Each claim of the theory beside a number that was measured for it. Written by "
            f"<code>python experiments/notes</code> with ddpm_jax in {seconds:.0f} seconds: "
            f"{held} of {count} claims hold.</p><nav><ol>",
            *links,
            "</ol></nav>",
            *map(written, sections),
            "</body></html>\n",
        ]
    )


def written(section: Section) -> str:
    """A note's part of the page: picture, claims, derivation."""
    note, title = section.note, html.escape(section.note.title)
    source = f"data:image/png;base64,{base64.b64encode(section.picture.read_bytes()).decode()}"
    return "\n".join(
        [
            f'<section id="{note.name}"><h2>{title}</h2>',
            f'<figure><img alt="{title}" src="{source}"><figcaption>{html.escape(note.idea)}</figcaption></figure>',
            '<table><tr class="head"><th>claim<th>measured<th>theory<th>because<th></tr>',
            *map(row, section.claims),
            f'</table><p class="soft"><code>experiments/notes/{note.name}.py</code>, {section.seconds:.0f} s</p>',
            markdown(note.derivation),
            "</section>",
        ]
    )


def row(claim: Claim) -> str:
    """A claim's row of the table."""
    verdict = ("holds", "holds") if claim.holds else ("fails", "FAILS")
    return (
        f'<tr><td>{html.escape(claim.says)}<td class="number" data-is="measured">{number(claim.measured)}'
        f'<td class="number" data-is="theory">{claim.expected}'
        f'<td class="soft" data-is="because">{html.escape(claim.because)}'
        f'<td class="{verdict[0]}">{verdict[1]}</tr>'
    )


def markdown(text: str) -> str:
    r"""Markdown with formulas between dollars, as HTML with MathML.

    A narrow page breaks formulas only at \quad, \qquad and \allowbreak, as browsers break no MathML.
    """
    from latex2mathml.converter import convert  # pyright: ignore[reportMissingImports]
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin  # pyright: ignore[reportMissingImports]

    def formula(tex: str, options: dict) -> str:
        if not options["display_mode"]:
            return "<wbr>".join(convert(part) for part in tex.split(r"\allowbreak"))
        parts = re.split(r"(\\q?quad|\\allowbreak)", tex)
        written = (convert(part, display="block") for part in parts[::2])
        marks = ("" if mark == r"\allowbreak" else " class=apart" for mark in [*parts[1::2], r"\allowbreak"])
        pieces = (f"<span{mark}>{part}</span>" for mark, part in zip(marks, written, strict=True))
        return f'<span class="formula">{"".join(pieces)}</span>'

    parser = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, renderer=formula, allow_digits=True)
    return parser.render(text)
