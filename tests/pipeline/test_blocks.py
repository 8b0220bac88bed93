"""The longest run of equal blocks, by networks whose blocks are counted by hand."""

import jax
import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.network.cuts import equations
from jaxsim.pipeline.blocks import ARGUMENT, equal_blocks, input_sources

X = jnp.ones((2, 4))


def line_of(model, params, *args):
    net = js.trace(model, params, *args)
    return equations(net, net.example)


def layers(count, before=0, after=0):
    """Equal layers behind ones that widen and before ones that narrow."""

    def model(p, x):
        for w in p["before"]:
            x = jnp.sin(x @ w)
        for w in p["equal"]:
            x = jnp.tanh(x @ w)
        for w in p["after"]:
            x = jnp.cos(x @ w)
        return x

    params = {
        "before": [jnp.ones((4, 4))] * before,
        "equal": [jnp.ones((4, 4))] * count,
        "after": [jnp.ones((4, 4))] * after,
    }
    return line_of(model, params, X)


@pytest.mark.parametrize(
    ("count", "before", "after", "stages", "number", "first", "begins"),
    [
        (4, 0, 0, 2, 4, 0, ["equal/2"]),
        (4, 0, 0, 4, 4, 0, ["equal/1", "equal/2", "equal/3"]),
        (4, 1, 0, 2, 4, 1, ["equal/2"]),
        (4, 0, 1, 2, 4, 0, ["equal/2"]),
        (6, 1, 1, 3, 6, 1, ["equal/2", "equal/4"]),
        (5, 1, 1, 2, 4, 1, ["equal/2"]),  # what is left of the fifth comes after
        (7, 0, 0, 3, 6, 0, ["equal/2", "equal/4"]),
    ],
)
def test_equal_layers_are_blocks_and_the_rest_comes_before_and_after(
    count, before, after, stages, number, first, begins
):
    found = equal_blocks(layers(count, before, after), stages)
    assert (found.number, found.first) == (number, first)
    assert [cut.name for cut in found.begins] == begins
    assert found.boundary_inputs == [0]
    assert found.boundary_outputs == [0]
    stages_in_all = number + (1 if before else 0) + (1 if after or count > number else 0)
    assert len(found.cut.stages) == stages_in_all


def test_blocks_of_several_layers_repeat_as_a_whole():
    def model(p, x):
        for wide, narrow in p:
            x = jnp.tanh(jnp.sin(x @ wide) @ narrow)
        return x

    found = equal_blocks(line_of(model, [(jnp.ones((4, 6)), jnp.ones((6, 4)))] * 4, X), 2)
    assert found.number == 4
    assert found.block.params == (2, 3)
    assert [cut.name for cut in found.begins] == ["2/0"]


def test_an_argument_that_all_blocks_read_is_no_boundary():
    def model(p, bias, x):
        for w in p:
            x = jnp.tanh(x @ w + bias)
        return x

    found = equal_blocks(line_of(model, [jnp.ones((4, 4))] * 4, jnp.ones(4), X), 2)
    assert found.number == 4
    assert (ARGUMENT, 0) in input_sources(found.block)
    assert len(found.boundary_inputs) == 1


@pytest.mark.parametrize("stages", [2, 3])
def test_unequal_layers_are_no_run(stages):
    def model(p, x):
        for w in p:
            x = jnp.tanh(x @ w)
        return x

    shapes = [(4, 3), (3, 5), (5, 2), (2, 6)]
    said = f"no run of equal blocks for stages={stages}.* here are 1 at most"
    with pytest.raises(ValueError, match=said):
        equal_blocks(line_of(model, [jnp.ones(s) for s in shapes], X), stages)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_what_is_inside_the_blocks_is_not_returned(kept):
    """Of three equal blocks the first and the second; the last one is read behind them anyway."""

    def model(p, x):
        made = []
        for w in p["equal"]:
            x = jnp.tanh(x @ w)
            made.append(x)
        return jnp.cos((x + made[2]) @ p["out"]), made[kept]

    layer = jnp.ones((4, 4))
    line = line_of(model, {"equal": [layer] * 4, "out": layer}, X)
    if kept == 2:
        assert equal_blocks(line, 1).number == 3
        return
    with pytest.raises(ValueError, match="what is inside the equal blocks is read after them"):
        equal_blocks(line, 1)


def test_fewer_blocks_than_stages_are_no_run():
    said = "no run of equal blocks for stages=5.* needs 5 blocks or .* here are 4 at most"
    with pytest.raises(ValueError, match=said):
        equal_blocks(layers(4), 5)


def test_convolutions_are_refused_on_a_cpu(monkeypatch):
    def model(p, x):
        for w in p:
            x = jax.lax.conv(x, w, (1,), "SAME")
        return x

    line = line_of(model, [jnp.ones((3, 3, 3))] * 4, jnp.ones((2, 3, 5)))
    with pytest.raises(ValueError, match="the network has convolutions"):
        equal_blocks(line, 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert equal_blocks(line, 2).number == 4


@pytest.mark.parametrize(
    ("before", "after", "first", "in_all"),
    [(jnp.sin, None, 1, 5), (None, jnp.cos, 0, 5), (jnp.sin, jnp.cos, 1, 6)],
)
def test_a_block_with_more_before_or_behind_it_is_one_all_the_same(before, after, first, in_all):
    """What has no weight is no layer: four blocks, though only those between are cut out."""

    def model(p, x):
        x = x if before is None else before(x)
        for w in p:
            x = jnp.tanh(x @ w)
        return x if after is None else after(x)

    found = equal_blocks(line_of(model, [jnp.ones((4, 4))] * 4, X), 2)
    assert (found.number, found.first, len(found.cut.stages)) == (4, first, in_all)
    assert [cut.name for cut in found.begins] == ["2"]


@pytest.mark.parametrize(("small", "begins"), [(4, "big/1/0"), (8, "small/4")])
def test_the_run_that_covers_most_is_taken(small, begins):
    """Two blocks of six equations are twelve, four of two are eight, and eight of two sixteen."""

    def model(p, x):
        for w in p["small"]:
            x = jnp.tanh(x @ w)
        for a, b, c in p["big"]:
            x = jnp.sin(jnp.cos(jnp.sin(x @ a) @ b) @ c)
        return x

    big = (jnp.ones((4, 6)), jnp.ones((6, 7)), jnp.ones((7, 4)))
    params = {"small": [jnp.ones((4, 4))] * small, "big": [big] * 2}
    found = equal_blocks(line_of(model, params, X), 2)
    assert [cut.name for cut in found.begins] == [begins]
