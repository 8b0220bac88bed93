"""Networks whose tokens leave, and pipelines, on accelerators: what each stage computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.accelerators import Memory
from jaxsim.pipeline.devices import StageDevices
from tests.accelerators.test_estimate import CHIP
from tests.accelerators.test_exits import KEYS, leaving, model, reaching

TOKENS, PAIR = 40, jax.devices()[:1] * 2
X = jax.random.normal(KEYS[0], (6, TOKENS, 4))


def attention(p, x, mask):
    scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x @ p["k"])
    scores = jnp.where(mask[:, None], scores, -jnp.inf)
    return x + jax.nn.softmax(scores) @ (x @ p["v"])


def transformer(p, x, lengths):
    mask = jnp.arange(x.shape[1]) < lengths[:, None]
    for layer in p["layers"]:
        x = attention(layer, x, mask)
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return x[:, 0] @ p["head"]


def present(x, lengths):
    return jnp.arange(x.shape[1]) < lengths[:, None]


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    shapes = {"q": (4, 4), "k": (4, 4), "v": (4, 4), "up": (4, 8), "down": (8, 4)}
    layers = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(2)]
    net = js.trace(transformer, {"layers": layers, "head": normal(4, 3)}, X, LENGTHS)
    return js.quantize(8, 8)(net)


LENGTHS = np.array([40, 40, 40, 12, 40, 3])
FULL = np.full(6, TOKENS)
BEFORE = ("layers/0/q", "layers/0/k", "layers/0/v")
BEHIND = ("layers/0/up", "layers/0/down", "layers/1/q", "layers/1/v")


def of_groups(base, name, groups):
    """What a site spends for groups of rows: the model at their numbers of tokens."""
    found = [js.estimate(base, CHIP, X[:rows, :n], FULL[:rows] * 0 + n) for rows, n in groups]
    return sum(e.sites[name].energy for e in found), sum(e.sites[name].latency for e in found)


def check_site(found, base, name, groups):
    energy, latency = of_groups(base, name, groups)
    assert found.sites[name].energy == pytest.approx(energy, rel=1e-9), name
    assert found.sites[name].latency == pytest.approx(latency, rel=1e-9), name


def test_each_stage_runs_for_the_tokens_that_reach_it(base):
    """Half of 40 leave behind the first attention, and 32 are computed, as `run` does."""
    net = js.prune_tokens([0.5, 0.9], keeps=js.tokens.top)(base)
    kept = np.asarray(net.simulate(X, FULL).kept)
    assert ((kept[:, 0] > 16) & (kept[:, 0] <= 32)).all()
    assert (kept[:, 1] <= 16).all()
    found = js.estimate(net, CHIP, X, FULL)
    for name in BEFORE:
        check_site(found, base, name, [(6, TOKENS)])
    for name in BEHIND:
        check_site(found, base, name, [(6, 32)])
    for name in ("layers/1/up", "layers/1/down"):
        check_site(found, base, name, [(6, 16)])
    whole = js.estimate(base, CHIP, X, FULL)
    assert found.rest["tanh"].energy == pytest.approx(
        whole.rest["tanh"].energy * (32 + 16) / (2 * TOKENS)
    )
    assert "what tells which tokens leave is not counted" in found.notes
    assert found.area == whole.area


def test_rows_of_few_tokens_are_computed_at_their_length(base):
    net = js.prune_tokens([0.5, 0.0], keeps=js.tokens.top, present=present)(base)
    found = js.estimate(net, CHIP, X, LENGTHS)
    for name in BEFORE:
        check_site(found, base, name, [(4, TOKENS), (2, 16)])
    for name in BEHIND:
        check_site(found, base, name, [(4, 32), (2, 16)])
    assert found.sites["layers/0/q"].area == 0


def test_where_all_tokens_stay_it_is_the_whole_network(base):
    whole = js.estimate(base, CHIP, X, FULL)
    found = js.estimate(js.prune_tokens(0.0)(base), CHIP, X, FULL)
    assert found.sites == whole.sites
    for name, spent in whole.rest.items():
        assert found.rest[name].components == pytest.approx(spent.components)


def test_cells_are_there_once_for_rows_of_any_number_of_tokens(base):
    cells = js.compose(js.slice_bits(2), js.analog(adc=6, rows=16))
    made = js.rules({"layers/1/up": cells})(base)
    whole = js.estimate(made, CHIP, X, FULL)
    cut = js.prune_tokens([0.5, 0.0], keeps=js.tokens.top, present=present)(made)
    parts = js.estimate(cut, CHIP, X, LENGTHS)
    assert parts.sites["layers/1/up"].area == whole.sites["layers/1/up"].area > 0
    assert parts.area == whole.area


def test_where_tokens_leave_depends_on_values(base):
    with pytest.raises(ValueError, match="args: where tokens leave depends on values"):
        js.estimate(js.prune_tokens(0.1)(base), CHIP)


@pytest.fixture(scope="module")
def mlp():
    shapes = {"a": (6, 8), "b": (8, 8), "c": (8, 5), "d": (5, 3)}
    params = {n: jax.random.normal(k, s) for n, (k, s) in zip(shapes, _pairs(shapes), strict=True)}
    return js.quantize(8, 8)(js.trace(model, params, ROWS))


ROWS = jax.random.normal(KEYS[0], (12, 6))


def _pairs(shapes):
    return zip(KEYS[: len(shapes)], shapes.values(), strict=True)


def makespan(times, microbatches):
    """When the last is done where each device takes what comes first, step by step."""
    done = [0.0] * (microbatches + 1)
    for own in times:
        free = 0.0
        for j in range(microbatches):
            free = max(free, done[j]) + own
            done[j] = free
    return done[microbatches - 1]


@pytest.mark.parametrize("microbatches", [1, 3])
def test_a_pipeline_runs_micro_batches_on_devices_of_their_own(mlp, microbatches):
    net = js.pipeline_shard(2, microbatches, devices=PAIR, balance=["c"])(mlp)
    found, few = js.estimate(net, CHIP, ROWS), ROWS[: 12 // microbatches]
    one = js.estimate(mlp, CHIP, few)
    for name, site in one.sites.items():
        assert found.sites[name].energy == pytest.approx(microbatches * site.energy)
        assert found.sites[name].latency == pytest.approx(microbatches * site.latency)
        assert found.sites[name].equations == microbatches * site.equations
    assert len(found.stages) == 2
    times = [s.latency / microbatches for s in found.stages]
    assert (found.stages[0].behind, found.stages[1].ahead) == pytest.approx((times[1], times[0]))
    assert found.latency == pytest.approx(makespan(times, microbatches))
    assert found.area == 2 * one.area
    assert found.parts["array"].area == 2 * one.parts["array"].area
    assert js.estimate(net, CHIP) == found  # of the traced example, whose values do not count


def test_devices_that_share_a_stage_take_their_part_of_each_micro_batch(mlp):
    net = js.pipeline_shard(2, 3, devices=PAIR, balance=["c"])(mlp)
    layout = net.layout._replace(devices=(StageDevices(("one", "other")),) * 2)
    four = dataclasses.replace(net, layout=layout)
    found, share = js.estimate(four, CHIP, ROWS), js.estimate(mlp, CHIP, ROWS[:2])
    for name, site in share.sites.items():
        assert found.sites[name].energy == pytest.approx(6 * site.energy)
        assert found.sites[name].latency == pytest.approx(3 * site.latency)
    assert found.area == 4 * share.area


def test_devices_may_run_stages_in_turns(mlp):
    turns = {"balance": ["b", "c", "d"], "schedule": "interleaved", "chunks": 2}
    net = js.pipeline_shard(4, 2, devices=PAIR, **turns)
    found = js.estimate(net(mlp), CHIP, ROWS)
    each = {n: s.latency / 2 for n, s in found.sites.items()}
    assert len(found.stages) == 2
    one, other = found.stages
    assert one.ahead == other.behind == 0
    assert one.latency + other.latency == pytest.approx(
        sum(s.latency for s in (*found.sites.values(), *found.rest.values()))
    )
    assert one.behind >= each["d"]
    assert other.ahead >= each["a"]
    assert found.area == 2 * CHIP.area


def test_rows_that_leave_a_pipeline_do_not_reach_its_later_devices(mlp):
    """Full micro-batches of those that stay, and one of what is left."""
    exits = leaving(mlp, ["b"], 0.01)
    rows = reaching(exits, ROWS)
    assert 12 == rows[0] > rows[1] > 4 > rows[1] % 4 > 0
    net = js.pipeline_shard(2, 3, devices=PAIR, balance=["c"])(exits)
    found = js.estimate(net, CHIP, ROWS)
    batches = [4] * (rows[1] // 4) + [rows[1] % 4]
    for name in ("b", "c", "d"):
        energy = sum(js.estimate(mlp, CHIP, ROWS[:n]).sites[name].energy for n in batches)
        assert found.sites[name].energy == pytest.approx(energy)
    assert found.sites["a"].energy == pytest.approx(
        3 * js.estimate(mlp, CHIP, ROWS[:4]).sites["a"].energy
    )
    assert f"rows in each stage: 12, {rows[1]}, {rows[1]}" in found.notes
    assert found.latency < js.estimate(exits, CHIP, ROWS).latency * 3


def test_tokens_leave_a_pipeline_too(base):
    net = js.prune_tokens([0.5, 0.0], keeps=js.tokens.top)(base)
    found = js.estimate(
        js.pipeline_shard(2, 2, devices=PAIR, balance=["layers/1/q"])(net), CHIP, X, FULL
    )
    check_site(found, base, "layers/0/q", [(3, TOKENS)] * 2)
    check_site(found, base, "layers/1/up", [(3, 32)] * 2)
    assert len(found.stages) == 2


def test_weights_have_to_fit_in_the_level_of_their_device(mlp):
    """Of 64 + 48 + 40 + 15 weights of 8 bits half are on either device."""
    net = js.pipeline_shard(2, 2, devices=PAIR, balance=["c"])(mlp)
    for size, fits in ((896, True), (895, False)):
        memory = {"sram": Memory(read=1.0, size=size), "dram": Memory(read=2.0)}
        small = js.Accelerator(CHIP.parts, memory, weights="sram", activations=8)
        if fits:
            js.estimate(net, small, ROWS)
        else:
            with pytest.raises(ValueError, match="the weights take 896 bits"):
                js.estimate(net, small, ROWS)
