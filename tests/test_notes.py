"""The notes' claims, each at a reduced size."""

import importlib
import math

import pytest
from note import Claim

REDUCED = {
    "marginal": {"num_chains": 2000, "num_steps": 50},
    "objective": {"num_steps": 20, "num_examples": 512, "each": 16},
}


@pytest.mark.parametrize("name", REDUCED)
def test_the_claims_hold(name):
    for claim in importlib.import_module(name).NOTE.measure(**REDUCED[name]).claims:
        assert claim.holds, claim


@pytest.mark.parametrize(
    ("relation", "measured", "holds"),
    [("=", 1.1, True), ("=", 1.2, False), ("=", 0.8, False), ("<", 1.0, True), ("<", 1.3, False), (">", 0.5, False)],
)
def test_a_claim_can_fail(relation, measured, holds):
    assert Claim("", measured, 1.0, 0.15, "", relation).holds == holds
    assert not Claim("", math.nan, 1.0, 0.15, "", relation).holds
