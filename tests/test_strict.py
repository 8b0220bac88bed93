"""People who run all of their code in JAX's strict modes can use all of the package."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_feature_runs_with_strict_promotion_of_types_and_ranks():
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-m", "tests.strict_process"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert found.returncode == 0, found.stdout + found.stderr
