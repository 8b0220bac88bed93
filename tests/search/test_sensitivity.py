"""Local errors are brought to the outputs by the candidate whose error is middling, by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.wrapper import Wrapper
from jaxsim.search import sensitivity
from jaxsim.search.config import Config
from tests.support.networks import stack

CANDIDATES = (
    Config(4),
    Config(4, 1, 1, ("static", "static")),
    Config(4, None, 1, ("exact", "static")),
)
# by the number of products of a candidate: sums of squares of errors, at sites of 2 and of 4
LOCAL = {4: {"w": 1e-5, "head": 1e-5}, 1: {"w": 0.8, "head": 2.4}, 2: {"w": 0.03, "head": 0.02}}
SIZE = {"w": 2.0, "head": 4.0}
OUTPUTS = np.array([3.0, 4.0])
REACHED = {"w": [1.0, 2.0], "head": [0.0, 0.5]}  # changes of the outputs by the middling candidate


def products(chain):
    found = [w.settings["blocks"] for w in chain if w.role == "blocks"]
    return int(found[0].products) if found else None


def test_errors_at_a_site_are_scaled_by_what_reaches_the_outputs(monkeypatch):
    """Errors are 5e-6, 0.5 and 0.01 of the outputs on average: the last is nearest to 1 %."""
    tried = []

    def deploy(net, *, calibrate):
        kinds = {name: products(chain) for name, chain in net.cores.items()}
        if any(w.name == "with_error" for w in net.cores["w"]):
            tried.append(kinds)
            states = {
                name: types.SimpleNamespace(
                    error=jnp.float32(LOCAL[kind][name]) * jnp.ones(2) / 2, size=jnp.full(2, s / 2)
                )
                for (name, kind), s in zip(kinds.items(), SIZE.values(), strict=True)
            }
            return types.SimpleNamespace(states=states)
        return kinds

    def outputs(kinds, calls):
        if set(kinds.values()) == {None}:
            return OUTPUTS
        (changed,) = [name for name, kind in kinds.items() if kind != 4]
        assert kinds[changed] == 2
        return OUTPUTS + REACHED[changed]

    monkeypatch.setattr(sensitivity, "deploy", deploy)
    monkeypatch.setattr(sensitivity, "_outputs", outputs)
    told = []
    found = sensitivity.site_sensitivity(
        js.quantize(8, 8)(stack()), ("w", "head"), CANDIDATES, jnp.ones((5, 4)), told.append
    )
    assert tried == [{"w": n, "head": n} for n in (4, 1, 2)]
    assert told[3:] == ["sensitivity: w", "sensitivity: head"]
    at_w, at_head = 5 / 25, 0.25 / 25
    np.testing.assert_allclose(
        found,
        [
            [at_w * 5e-6 / 0.015, at_w * 0.4 / 0.015, at_w],
            [at_head * 2.5e-6 / 0.005, at_head * 0.6 / 0.005, at_head],
        ],
        rtol=1e-4,
    )


def test_a_core_is_read_as_its_reference_and_watched_when_calibrated():
    """Three times the input in place of twice: the squares of inputs, over two batches."""

    def times(core, *, by):
        return js.Core(
            lambda op, w, key: by, lambda op, state, x: state, lambda op, state, x, key: state * x
        )

    reference = Wrapper.of(times, by=2.0)
    watched = sensitivity.with_error(times(None, by=3.0), reference=(reference,))
    x = jnp.array([1.0, 2.0])
    state = watched.write(None, None, None)
    assert (state.exact, state.inner, float(state.error), float(state.size)) == (2, 3, 0, 0)
    for _ in range(2):
        state = watched.calibrate(None, state, x)
    assert float(state.error) == pytest.approx(2 * 5)
    assert float(state.size) == pytest.approx(2 * 4 * 5)
    assert watched.read(None, state, x, None).tolist() == [2, 4]
