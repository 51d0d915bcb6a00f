"""Pages on narrow screens, and the figures that come with the library."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import page as notes_page
import pytest
from helpers import readable

from ddpm_jax.diffusion.variance import FixedSmall, LearnedRange
from ddpm_jax.evaluation import page as report_page
from ddpm_jax.evaluation.chart import WIDTH, Line, chart
from ddpm_jax.evaluation.report import Report, Score

SCORES = (
    Score("FD-10k", 1234.5, "a distance", interval=(1.2e-5, 2.4e-5), held_out=3.0),
    Score("copies", 0.01, "a share", error=0.001),
    Score("bits/dim", 3.0, "a bound"),
)


def rules(style):
    """{selector: declarations} of the rules for any screen, and of those for narrow ones, each selector by itself."""
    narrow = re.search(r"@media \(max-width: \d+px\) \{((?:[^{}]*\{[^{}]*\})*)\s*\}", style)
    found = []
    for part in (style.replace(narrow[0], ""), narrow[1]):
        pairs = re.findall(r"([^{};]+)\{([^{}]*)\}", part)
        one = {}
        for selectors, declarations in pairs:
            for selector in selectors.split(","):
                one[selector.strip()] = one.get(selector.strip(), "") + declarations
        found.append(one)
    return found


@pytest.mark.parametrize("style", [report_page.STYLE, notes_page.STYLE], ids=["report", "notes"])
def test_nothing_of_a_table_is_beyond_a_narrow_screen(style):
    """There, cells stand below each other, and what keeps columns wide elsewhere is taken back."""
    wide, narrow = rules(style)
    for part in ("table", "tbody", "tr", "td"):
        assert "display: block" in narrow[part]
    for selector, declarations in wide.items():
        if "nowrap" in declarations:
            assert "white-space: normal" in narrow[selector]
        if "min-width" in declarations:
            assert "min-width: 0" in narrow[selector]
        if re.search(r"overflow(-x)?: auto", declarations):
            assert selector in ("pre", ".formula math")
        assert all(int(width) <= 388 for width in re.findall(r"[^-]width: (\d+)px", declarations))


def test_an_empty_cell_of_a_report_is_hidden_on_a_narrow_screen():
    """The rule comes after that of numbers, which is as specific."""
    style = report_page.STYLE
    assert style.index("td:empty { display: none }") > style.index("td.number { display: inline-block")


def test_every_number_of_a_report_says_what_it_is_without_the_table_head():
    table = report_page.scores(Report({}, SCORES))
    heads = re.findall("<th>([^<]*)", table)
    assert all(heads)
    for written, score in zip(table.split("<tr>")[1:], SCORES, strict=True):
        cells = re.findall('<td class="([^"]*)"(?: data-is="([^"]*)")?>', written)
        assert len(cells) == len(heads)
        for (kind, says), head in zip(cells, heads, strict=True):
            assert says == (head if kind == "number" else "")
        assert score.about in written


def test_lines_of_a_chart_differ_in_grey_and_its_legend_is_inside():
    lines = [Line(name, np.arange(3.0), np.arange(3.0) + i) for i, name in enumerate(("samples", "held-out images"))]
    drawn = chart("t", "x", "y", lines)
    assert len(set(re.findall(r'<polyline [^>]*stroke-dasharray="([^"]*)"', drawn))) == len(lines)
    keys = re.findall(r'<line fill="none" [^>]*x1="([\d.]+)" x2="([\d.]+)"', drawn)
    ends = [float(start) + 7 * len(line.name) + 27 for (start, _), line in zip(keys, lines, strict=True)]
    assert ends[0] < float(keys[1][0])
    assert ends[1] < WIDTH


def test_the_figure_of_the_samplers_can_be_read(tmp_path):
    path = Path(__file__).parents[1] / "scripts" / "sampler_table.py"
    spec = importlib.util.spec_from_file_location("sampler_table", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    table = script.Measurements(tmp_path / "samplers.json")
    table.values = {"test split, Frechet distance": 0.76, "flow, bits/dim": 4.73}

    class Coding:
        def rate_distortion(self):
            return np.linspace(0, 3, 50), np.linspace(60, 0, 50)

    for learned in (False, True):
        rows = script.rows(LearnedRange() if learned else FixedSmall())
        results = {
            row.name: {n: (0.3 + (i + 1) / n, 4.6 - i / n if row.variance else 4.73) for n in script.EVALUATIONS}
            for i, row in enumerate(rows)
        }
        figure = script.draw_figure(results, table, Coding())
        readable(figure)
        distance, bits, _ = figure.axes
        assert {line.get_label() for line in distance.lines} == {*results, "images of the test split"}
        assert len(bits.lines) == 1 + sum(row.variance is not None for row in rows)
        for axes in (distance, bits):
            assert [label.get_text() for label in axes.get_xticklabels()] == [str(n) for n in script.EVALUATIONS]
        assert all("10^" not in label.get_text() for label in distance.get_yticklabels())
