"""People who run all of their code in JAX's strict modes can use all of the package."""

import pytest

from tests.support.processes import start

SHARES = 2


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_every_feature_runs_with_strict_promotion_of_types_and_ranks(share):
    process = start("tests.support.strict_process", f"{share}/{SHARES}", devices=1)
    output, error = process.communicate(timeout=900)
    assert process.returncode == 0, output + error
