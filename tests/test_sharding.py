"""Arrays made beside parameters lie where the parameters do."""

import json

import pytest

from tests.processes import start


@pytest.fixture(scope="module")
def made():
    process = start("tests.sharding_process", devices=4)
    output, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def test_what_is_made_beside_parameters_takes_their_sharding(made):
    assert len(made) == 12
    for name, axes in made.items():
        assert axes == {"a": 1, "b": 0}, name
