"""Whole runs of EDM, of flow matching and of UniPC, as diffusers' schedulers compute them."""

import continuous_reference as reference
import numpy as np
import pytest


@pytest.fixture(scope="module")
def stored():
    return reference.stored()


# Compiling takes the time: some by default.
FAST = {"euler_18", "dpm_20", "flow_shift_28", "unipc_flow", "unipc_linear_10", "unipc_cosine_10"}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in reference.CASES]
)
def test_a_run_is_that_of_the_scheduler_of_diffusers(stored, name):
    """Every z, divided by its standard deviation, to 1e-5; tests/reference/continuous_reference.py stored theirs."""
    assert stored[name].std() > 0.3
    np.testing.assert_allclose(reference.ours(name), stored[name], atol=1e-5, rtol=0)
