"""The notes' claims, each at a reduced size."""

import importlib
import math
import pkgutil
import re
import runpy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from xml.etree import ElementTree

import marginal
import note
import one_process
import pytest
from helpers import readable
from note import Claim
from page import Section, markdown, page
from rich.console import Console

NAMES = runpy.run_path(str(Path(note.__file__).parent))["NAMES"]

REDUCED = {
    "marginal": {"num_chains": 2000, "num_steps": 50},
    "objective": {"num_steps": 20, "num_examples": 512, "each": 16},
    "many_modes": {"width": 48, "num_steps": 800, "count": 2000, "fresh": 50},
    "plinko": {"count": 1000, "num_steps": 100},
    "brownian_limit": {"num_chains": 500, "num_steps": 200},
    "perspectives": {"train_steps": 400, "count": 50, "score_limit": 0.3, "nats_limit": 0.3},
    "one_process": {"train_steps": 200, "count": 500},
    "without_the_target": {"num_draws": 500, "chains": (16, 32), "table_draws": (4000,), "stops": (100,)},
    "spectral": {
        "num_images": 500,
        "num_times": 4,
        "count": 64,
        "sampler_steps": 40,
        "width": 64,
        "training_steps": 400,
    },
}


# Notes that train networks, or take seconds.
LONG = ("many_modes", "without_the_target", "spectral", "perspectives", "one_process")
LONG += ("objective", "brownian_limit", "plinko")


each_note = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in REDUCED]
)


@cache
def findings(name):
    return importlib.import_module(name).NOTE.measure(**REDUCED[name])


@each_note
def test_the_claims_hold(name):
    for claim in findings(name).claims:
        assert claim.holds, claim


@each_note
def test_a_picture_can_be_read(name):
    readable(importlib.import_module(name).NOTE.figure(findings(name)))


@pytest.mark.slow
def test_one_function_on_three_processes():
    """The claims of `one_process` at equal SNR, with the exact network."""
    for claim in one_process.one_function(one_process.DATA.denoiser(one_process.VP), 50):
        assert claim.holds, claim


@pytest.mark.parametrize(
    ("relation", "measured", "holds"),
    [("=", 1.1, True), ("=", 1.2, False), ("=", 0.8, False), ("<", 1.0, True), ("<", 1.3, False), (">", 0.5, False)],
)
def test_a_claim_can_fail(relation, measured, holds):
    assert Claim("", measured, 1.0, 0.15, "", relation).holds == holds
    assert not Claim("", math.nan, 1.0, 0.15, "", relation).holds


FOLDER = Path(note.__file__).parent
DERIVATIONS = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}


def test_every_note_is_run_derived_and_tested():
    assert set(NAMES) == set(REDUCED) == set(DERIVATIONS)


@pytest.mark.parametrize("name", DERIVATIONS)
def test_a_derivation_points_at_what_exists(name):
    """Each dotted name between backticks is one of the library, and each formula is rendered."""
    for dotted in re.findall(r"`([a-z_]+(?:\.\w+)+)`", DERIVATIONS[name]):
        pkgutil.resolve_name(f"ddpm_jax.{dotted}")
    written = markdown(DERIVATIONS[name])
    formulas = re.findall(r"(?<![\\$])\$\$?[^$]+\$\$?", DERIVATIONS[name])
    assert written.count("<math") == sum(len(re.split(BREAK, formula)) for formula in formulas)
    assert "$" not in written


BREAK = r"\\q?quad|\\allowbreak"  # where the page may break a formula


@pytest.mark.parametrize("name", DERIVATIONS)
def test_formulas_fit_a_narrow_screen(name):
    """In the 388 pixels that a screen of 420 leaves, by a sum of the letters' widths, right within 10% in Chromium."""
    for written in re.findall(r"<math.*?</math>", markdown(DERIVATIONS[name]), re.DOTALL):
        size = 16 * 1.05 * (0.85 if 'display="block"' in written else 0.92)
        assert size * width(ElementTree.fromstring(written)) < 388, written


def width(element):
    """Of MathML, in ems."""
    tag, parts = element.tag.split("}")[-1], [width(child) for child in element]
    if tag in ("mi", "mn", "mo", "mtext"):
        text = element.text or ""
        return 0.6 * len(text) + (0.4 if text and text in "=+−-≤≥≈→∝∣~" else 0)
    if tag == "mfrac":
        return max(parts)
    if tag in ("msub", "msup"):
        return parts[0] + 0.7 * parts[1]
    if tag == "msubsup":
        return parts[0] + 0.7 * max(parts[1:])
    if tag in ("mover", "munder", "munderover"):
        return max(parts[0], 0.7 * max(parts[1:]))
    return sum(parts) + 0.6 * (tag == "msqrt")


def test_the_page_and_the_pictures(tmp_path, capsys):
    """A note is run as from the command line; its page holds the picture, the numbers and the derivation."""
    small = replace(marginal.NOTE, measure=partial(findings, "marginal"))
    found, seconds = small.run(tmp_path, Console())
    assert "holds" in capsys.readouterr().out
    wrong = Claim("one <is> two", 1.0, 2.0, 0.1, "not so")
    text = page([Section(small, [*found.claims, wrong], tmp_path / "marginal.png", seconds)])
    assert text.count("data:image/png;base64,") == 1
    assert "one &lt;is&gt; two" in text
    assert text.count(">FAILS<") == 1
    assert text.count(">holds<") == len(found.claims)
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing is fetched
