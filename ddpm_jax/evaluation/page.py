"""A report as one HTML page with all its pictures inside, which can be mailed, archived, and opened offline."""

import base64
import html
import json
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from ddpm_jax.evaluation.report import Report, row, summary
from ddpm_jax.storage.pictures import png

__all__ = ["Picture", "page"]

STYLE = """
:root { color-scheme: light dark; --line: #ccd3da; --soft: #667; --back: #fff; --text: #1b2430; --panel: #f5f7f9 }
@media (prefers-color-scheme: dark) { :root { --line: #3a434d; --soft: #9aa6b2; --back: #14181d; --text: #e4e9ee;
  --panel: #1d232a } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 980px; padding: 24px; background: var(--back);
  color: var(--text) }
h1 { font-size: 24px; margin: 0 } h2 { font-size: 18px; margin: 36px 0 8px } p { margin: 6px 0 12px }
.soft { color: var(--soft) }
table { border-collapse: collapse; width: 100% } th { font-weight: 600; text-align: left; color: var(--soft) }
td, th { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap } td.key { white-space: nowrap }
td.about { min-width: 260px }
@media (max-width: 979px) { table, tbody, tr, td { display: block } tr.head { display: none }
  tr { padding: 8px 0; border-bottom: 1px solid var(--line) } td, td.about { padding: 1px 0; border: 0; min-width: 0 }
  td.number, td.key { white-space: normal } td.number { display: inline-block; margin-right: 18px }
  td:empty { display: none }
  td[data-is]::before { content: attr(data-is) ": "; color: var(--soft) } }
img { max-width: 100%; height: auto; border-radius: 4px } figure { margin: 12px 0 } figcaption { color: var(--soft) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 16px }
svg { width: 100%; max-width: 560px; height: auto; background: var(--panel); border-radius: 4px; font-size: 11px }
svg text { fill: var(--text) } svg .title { font-size: 13px; font-weight: 600 }
svg .grid { stroke: var(--line); stroke-width: 0.6 }
pre { background: var(--panel); padding: 12px; border-radius: 4px; overflow-x: auto; font-size: 12px }
code, p, h1, td { overflow-wrap: anywhere } details pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Picture:
    """A picture with its title and caption."""

    title: str
    caption: str
    pixels: UInt8[np.ndarray, "height width channels"]


def page(report: Report, pictures: list[Picture], charts: list[str]) -> str:
    """The page of a report as HTML.

    Args:
        report: the report.
        pictures: the pictures, in order.
        charts: SVG elements; "" is left out.
    """
    drawing = report.conditions["drawing"]
    title = f"{drawing['experiment']}, step {drawing['step']}"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{report.conditions["num_samples"]:,} samples, evaluated with ddpm_jax</p>',
        scores(report),
        *(f"<p>{html.escape(note)}</p>" for note in report.notes),
        *map(figure, pictures),
    ]
    if shown := [chart for chart in charts if chart]:
        parts += ["<h2>Curves</h2>", '<div class="charts">', *shown, "</div>"]
    parts += ["<h2>Conditions</h2>", "<p>The numbers depend on all of these.</p>", conditions(report)]
    text = json.dumps(report.conditions, indent=2)
    parts.append(f"<details><summary>as JSON</summary><pre>{html.escape(text)}</pre></details>")
    return "\n".join([*parts, "</body></html>\n"])


def scores(report: Report) -> str:
    """The table of scores as HTML."""
    heads = ("metric", "value", "uncertainty", "held-out images", "meaning")
    lines = [f'<table><tr class="head">{"".join(f"<th>{head}" for head in heads)}</tr>']
    for score in report.scores:
        name, value, sure, held_out = map(html.escape, row(score))
        lines.append(
            f'<tr><td class="key"><b>{name}</b><td class="number" data-is="value"><b>{value}</b>'
            f'<td class="number" data-is="uncertainty">{sure}<td class="number" data-is="held-out images">{held_out}'
            f'<td class="soft about">{html.escape(score.about)}</tr>'
        )
    return "\n".join([*lines, "</table>"])


def conditions(report: Report) -> str:
    """The table of conditions as HTML."""
    line = '<tr><td class="key soft">{}<td><code>{}</code></tr>'
    lines = (line.format(label, html.escape(value)) for label, value in summary(report.conditions).items())
    return "\n".join(["<table>", *lines, "</table>"])


def figure(picture: Picture) -> str:
    """A picture as HTML, with its pixels inside."""
    source = f"data:image/png;base64,{base64.b64encode(png(picture.pixels, optimize=True)).decode()}"
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    return f'<h2>{title}</h2><figure><img alt="{title}" src="{source}"><figcaption>{caption}</figcaption></figure>'
