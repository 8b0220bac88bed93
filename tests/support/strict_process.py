"""One case a feature under JAX's strict modes: `python -m tests.support.strict_process [name …]`.

Both modes are global, and refuse what the tests themselves may do. `0/3` runs the first of every
three cases.
"""

import dataclasses
import functools
import sys
import traceback

import jax
import numpy as np

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import linen as nn  # noqa: E402

import jaxsim as js  # noqa: E402
import jaxsim.cascades as jc  # noqa: E402
import jaxsim.collaborative as jcol  # noqa: E402
import jaxsim.games as jg  # noqa: E402
import jaxsim.quantum as jq  # noqa: E402
import jaxsim.solvers as jsol  # noqa: E402
from jaxsim.formats import clipping  # noqa: E402
from jaxsim.search.blocks import configs  # noqa: E402
from jaxsim.staged import sweep  # noqa: E402
from jaxsim.train import Soft, cross_entropy, fit, pulsed  # noqa: E402
from tests.support import encoders  # noqa: E402

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
X = rng.normal(size=(4, 6, 6, 3)).astype("f")
LABELS = np.arange(4)
sp = js.sparsity


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        return nn.Dense(4)(x.mean((1, 2)))


@functools.cache
def network():
    model = CNN()
    return js.trace(model, model.init(KEY, X), X)


def called(*transforms):
    """The network transformed, called before and after deployment."""
    q = js.compose(*transforms)(network())
    # types and ranks are looked at while tracing: nothing needs compiling
    jax.eval_shape(lambda: q(X, key=KEY))
    if q.cores:
        jax.eval_shape(lambda: js.deploy(q, key=KEY, calibrate=X)(X, key=KEY))
    return q


CASES = {
    "int8": lambda: called(js.quantize()),
    "affine": lambda: called(
        js.quantize(js.Grid(4, symmetric=False, per="channel"), js.Grid(8, symmetric=False))
    ),
    "a token": lambda: called(js.quantize(8, js.Grid(8, per="token", symmetric=False))),
    "groups": lambda: called(js.quantize(js.Grid(4, per="group", rows=5), js.Grid(1))),
    "signs, pruned": lambda: called(js.prune(0.5), js.quantize(1, js.Grid(1))),
    "powers": lambda: called(js.quantize(js.Grid(4, spacing="powers"), 8)),
    "stochastic": lambda: called(js.quantize(js.Grid(4, rounding="stochastic"), 8)),
    **{
        f"clipped by {name}": lambda clip=clip, s=symmetric: called(
            js.quantize(js.Grid(4, symmetric=s, clip=clip), js.Grid(4, symmetric=s, clip=clip))
        )
        for name, clip in {
            "percentile": clipping.percentile(99.0),
            "squares": clipping.least_squares(),
            "entropy": clipping.entropy(),
            "rms": clipping.rms(2.0),
        }.items()
        for symmetric in (True, False)
    },
    "averaged": lambda: called(js.quantize(8, js.Grid(8, average=0.9))),
    "nf4": lambda: called(js.quantize(js.nf4(), 8)),
    "k-means": lambda: called(js.quantize(js.Codebook(size=4), 8)),
    "vectors, pruned": lambda: called(js.prune(0.5), js.quantize(js.Codebook(size=4, length=2), 8)),
    "short floats": lambda: called(js.quantize(js.Floating(), js.Floating("float8_e5m2"))),
    "bfloat16": lambda: called(js.quantize(js.Floating("bfloat16"), None)),
    "blocks": lambda: called(js.quantize(), js.block(2, 1, 2, "dynamic")),
    "pairs of blocks": lambda: called(js.quantize(), js.block(4, pairs=[(0, 1), (1, 1)])),
    "slices": lambda: called(js.quantize(4, 8), js.slice_bits(2)),
    "an array": lambda: called(
        js.quantize(4, 8),
        js.slice_bits(2),
        js.analog(adc=8, cells=js.cells.proportional(0.02, noise=0.01, on_off=20.0), rows=16),
    ),
    "offsets": lambda: called(
        js.quantize(4, js.Grid(8, symmetric=False)),
        js.slice_bits(2),
        js.analog(adc=8, cells=js.cells.independent(0.02, on_off=20.0), mapping="offset", rows=16),
    ),
    "a unit column": lambda: called(
        js.quantize(4, 8),
        js.analog(adc=8, cells=js.cells.inverse(0.01), mapping="unit_column", input_bits=2),
    ),
    "granular": lambda: called(
        js.quantize(4, 8), js.analog(adc=8, adc_range="granular", input_bits=1)
    ),
    "largest range": lambda: called(
        js.quantize(4, 8), js.analog(adc=8, adc_range="max", input_bits=4, accumulate="analog")
    ),
    **{
        name: lambda make=make: called(js.quantize(4, 8), js.analog(cells=make(), rows=16))
        for name, make in {
            "sonos": lambda: js.cells.sonos(days=1.0),
            "milo": js.cells.rram_milo,
            "wan": js.cells.rram_wan,
            "joshi": js.cells.pcm_joshi,
        }.items()
    },
    "wires": lambda: called(
        js.quantize(4, 8),
        js.analog(cells=js.cells.proportional(0.0), wires=js.wires.input_source(1e-3), rows=16),
    ),
    "gated wires": lambda: called(
        js.quantize(4, 8),
        js.analog(
            cells=js.cells.proportional(0.0), wires=js.wires.gated(1e-3), rows=16, input_bits=1
        ),
    ),
    "solved wires": lambda: called(
        js.quantize(4, 8),
        js.analog(
            cells=js.cells.proportional(0.0),
            wires=js.wires.input_source(1e-3, interleaved=True, solver="cg"),
            rows=16,
        ),
    ),
    "gptq": lambda: called(js.quantize(4, 8), js.round_weights(js.rounding.gptq(), X)),
    "adaround": lambda: called(js.quantize(4, 8), js.round_weights(js.rounding.adaround(20), X)),
    "corrected biases": lambda: called(js.quantize(4, 8), js.correct_bias(X)),
    "smoothed": lambda: called(js.quantize(4, 8), js.smooth(X)),
    "learned ranges": lambda: called(js.quantize(4, 8), js.learn_ranges(X)),
    "folded": lambda: called(js.fold_norms(X), js.quantize()),
    "equalized": lambda: called(js.fold_norms(X), js.equalize(X), js.quantize()),
    "pruned": lambda: called(js.prune(0.5)),
    "shrunk": lambda: called(js.prune(0.5), js.shrink(0.5)),
    "exits": lambda: js.distill_exits(called(js.exit_early(2)), X, key=KEY, steps=3).run(X),
    "integers": lambda: js.integer_only(js.deploy(js.quantize()(network()), calibrate=X))(X),
    "cost": lambda: js.quantize()(network()).cost(),
}


def gradient():
    for t in (js.quantize(4, 8), js.compose(js.quantize(4, 8), js.slice_bits(2), js.analog(adc=8))):
        q = t(network())
        jax.eval_shape(jax.grad(lambda p, q=q: dataclasses.replace(q, params=p)(X).sum()), q.params)


def loss(net):
    return cross_entropy(net(X), LABELS)


def of_one(net, example):
    return cross_entropy(net(example[0]), example[1])


def trained(make, begin=js.prune(0.5)):
    """Two updates of an optimizer that is made for a network."""
    net = begin(network())
    tx = make(net)
    params, state = net.params, tx.init(net.params)
    for _ in range(2):
        grads = jax.tree.map(jnp.ones_like, params)
        params, state = jax.eval_shape(
            lambda g, p, s: (lambda u, s: (optax.apply_updates(p, u), s))(*tx.update(g, s, p)),
            grads,
            params,
            state,
        )
        params, state = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), (params, state))


def gates(make):
    open_net = sp.gated(network(), make)
    tx = optax.chain(sp.penalized(make, 0.1), optax.sgd(0.1))
    shapes = jax.eval_shape(
        lambda p, s: tx.update(
            jax.grad(lambda p: dataclasses.replace(open_net, params=p)(X, key=KEY).sum())(p), s, p
        ),
        open_net.params,
        tx.init(open_net.params),
    )
    assert shapes
    sp.closed(open_net, network(), make)
    sp.closed(open_net, network(), make, sparsity=0.5)


def masks(prune):
    return jax.eval_shape(lambda: prune(network()).masks)


CRITERIA = {
    "squared": sp.squared,
    "random": lambda: sp.random(KEY),
    "taylor": lambda: sp.taylor(loss),
    "snip": lambda: sp.snip(loss),
    "grasp": lambda: sp.grasp(loss),
    "synflow": lambda: sp.synflow(X[:1]),
    "fisher": lambda: sp.fisher(of_one, (X, jnp.asarray(LABELS))),
    "wood_fisher": lambda: sp.wood_fisher(of_one, (X, jnp.asarray(LABELS)), block=16),
    "obd": lambda: sp.obd(loss, key=KEY, samples=2),
    "batch_norm_scale": lambda: sp.batch_norm_scale({"Conv_0/kernel": "BatchNorm_0/scale"}),
    "redundancy": sp.redundancy,
    "activity": lambda: sp.activity(X),
    "activation_variance": lambda: sp.activation_variance(X),
}
DISTRIBUTIONS = {"uniform": sp.uniform, "er": sp.er, "erk": sp.erk, "lamp": sp.lamp}
PATTERNS = {
    "n of m": lambda: js.prune(pattern=sp.n_of_m(1, 2), sites="Dense*"),
    "block": lambda: js.prune(0.5, pattern=sp.block(2, 2), sites="Dense*"),
    "channel": lambda: js.prune(0.5, pattern=sp.channel(), distribution=sp.uniform()),
}
CUBIC = sp.cubic(0.5, begin=0, every=1, updates=2)
SPARSE = {
    "fixed": lambda net: sp.fixed(optax.adam(0.1), net),
    "gradual": lambda net: sp.gradual(optax.adam(0.1), net, CUBIC),
    "movement": lambda net: sp.gradual(optax.adam(0.1), net, CUBIC, criterion=sp.movement()),
    "lottery": lambda net: sp.lottery(optax.adam(0.1), net, CUBIC, at=1),
    "rigl": lambda net: sp.rigl(optax.adam(0.1), net, every=1, until=9),
    "set": lambda net: sp.sparse_evolution(optax.adam(0.1), net, key=KEY, every=1, until=9),
    "snfs": lambda net: sp.momentum_growth(optax.adam(0.1), net, every=1, until=9),
    "top gradients": lambda _: optax.chain(sp.topk_gradient(0.5), optax.sgd(0.1)),
}


def pipelined(**settings):
    x = np.ones((4, 5), "f")
    model = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(6), nn.relu, nn.Dense(3)])
    net = js.trace(model, model.init(KEY, x), x)
    made = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2, **settings)(net)
    made(x)
    js.pipeline_value_and_grad(made, lambda y, t: jnp.mean((y - t) ** 2))(
        net.params, (x, np.ones((4, 3), "f"))
    )


def pyramids():
    given = encoders.sequences(2)
    make = js.magic_pyramid(0.02, js.Rule(0.5), heads=encoders.heads(), present=encoders.present)
    net = make(encoders.network())
    jax.eval_shape(net, *given)
    jax.eval_shape(functools.partial(net.soften, temperature=1e-3), *given)
    net.run(*given)
    sweep(net, given, np.arange(2), thresholds=(0.0, 0.5))


def levels():
    """Levels at which tokens leave, learned."""
    make = js.prune_tokens(js.tokens.linear_thresholds(0.02, 3), present=encoders.present)
    fit(
        make(encoders.network()),
        encoders.sequences(2),
        np.arange(2),
        epochs=1,
        batch_size=2,
        optimizer=optax.adam(0.1),
        key=KEY,
        soft=Soft(),
        pad_to=8,
        quiet=True,
    )


def searched():
    net = js.quantize(8, 8)(network())
    return js.search_blocked(
        net,
        X,
        lambda n: -float(jnp.abs(n(X)).sum()),
        drop=9.0,
        candidates=configs((3,)),
        quiet=True,
    )


def bits():
    for losses in (
        js.hessian_sensitivity(network(), loss, key=KEY, samples=1),
        js.ablation_sensitivity(network(), loss, bits=(2, 4)),
    ):
        js.assign_bits(losses, mean_bits=3)


def sparsely():
    net = js.prune(0.9)(network())
    jax.eval_shape(js.run_sparse(break_even=0.0)(net), X)
    js.sparsity_report(net)


GAMES = {
    "skill": lambda: jg.games_of_skill(KEY, 4),
    "matrix": lambda: jg.matrix_game(jg.rock_paper_scissors()),
    "mixture": lambda: jg.rps_mixture(KEY),
    "lotto": lambda: jg.lotto(KEY, 3, 4),
    "pennies": lambda: jg.matching_pennies(2),
    "kuhn": lambda: jg.both_seats(jg.kuhn_poker().game),
    "kuhn by logits": lambda: jg.by_logits(jg.kuhn_poker().game),
}
MIXERS = {
    "uniform": jsol.uniform,
    "latest": jsol.latest,
    "nash": lambda: jsol.nash(10),
    "linear": jsol.nash_lp,
    "rectified": lambda: jsol.rectified(10),
    "projected": lambda: jsol.projected_replicator(10),
}


def grown(game, solver=None, oracle=None):
    """A population, traced."""
    game = game() if callable(game) else game
    solver, oracle = solver or jsol.uniform(), oracle or jsol.unrolled(1, 1.0)
    return jax.eval_shape(lambda k: jsol.psro(game, solver, oracle, k, iterations=2), KEY)


def meta(network, gradient="unrolled", **objective):
    tx = jsol.meta_optimizer(0.01, 10)
    aim = jsol.Objective(jsol.unrolled(1, 5.0), iterations=2, window=2, **objective)
    step = jsol.meta_step(
        network, aim, lambda key: jg.games_of_skill(key, 4), tx, batch=2, gradient=gradient
    )
    jax.eval_shape(step, jsol.init_meta(network, tx, KEY), KEY)


def spreads():
    g = graph()
    for engine in ("auto", "packed", "frontier"):
        jc.simulate_ic(g, [0, 1], KEY, 40, engine=engine)
    jc.simulate_lt(jc.weighted_cascade(g), [0], KEY, 40)
    jc.influence(g, [[0], [1]], KEY, 40)
    jc.exact_influence(g, [0])


def graph():
    return jc.from_edges(np.array([0, 1, 2, 3, 0]), np.array([1, 2, 3, 4, 3]), 0.5, n=5)


def learned():
    c = jc.sample_cascades(graph(), 0.4, KEY, 200, record="steps")
    estimate = jc.infer_network(c)
    jc.diagnose(c, estimate)
    jc.mle_refine(c, estimate.p, 3)
    jc.ims(c, 2, KEY, mode="mixed")


def covered():
    jc.maximize_influence(graph(), 2, KEY)
    sets = jc.rr_sample(graph(), KEY, 256, lanes=32)
    jc.coverage(sets, jc.max_cover(sets, 2).seeds)


def circuits():
    def told(kernel, theta):
        drawn = jq.sample(kernel, theta, 8, KEY), jq.sample(kernel, theta, 8, KEY, joint=True)
        return jq.probabilities(kernel, theta), drawn

    theta = jnp.ones((2, 3))
    for circuit, noise in (
        (jq.strongly_entangling(np.ones((1, 3, 3))), None),
        (jq.basic_entangling(np.ones((1, 3))), jq.depolarizing(0.1)),
        (jq.random_layers(np.ones((1, 3)), seed=0), jq.amplitude_damping(0.1)),
    ):
        jq.draw(circuit)
        kernel = jq.compile_circuit(circuit, noise=noise)
        told(kernel, theta)
        jax.eval_shape(jax.grad(lambda t, kernel=kernel: jq.expval(kernel, t).sum()), theta)


def filters():
    kernel = jq.compile_circuit(jq.strongly_entangling(np.ones((1, 4, 3))))
    for spec in (jq.QuanvSpec(), jq.QuanvSpec(encoding=jq.threshold(0.5))):
        jq.quanv2d(rng.random((2, 4, 4)).astype("f"), kernel, spec)


def together():
    x, labels = rng.normal(size=(6, 5)).astype("f"), np.arange(6) % 2
    x = jnp.asarray(x)
    alpha = jcol.ridge_codes(x, x, 0.1)
    jcol.class_residuals(x, labels, x, alpha, 2, normalize=True)
    jcol.loo_codes(x, 0.1)
    made = jcol.make_dictionary(x, labels, 2, 0.1)
    for readout in ("residual", "ridge"):
        jcol.dictionary_logits(made, x, 3.0, readout=readout)
        for leave in (True, False):
            logits = jcol.batch_logits(x, labels, 2, 0.1, 3.0, readout=readout, leave_one_out=leave)
            jcol.leave_one_out_entropy(logits, labels)
    maps = jnp.ones((2, 3, 3, 4))
    jcol.bilinear_pool(maps, maps)
    jcol.compact_bilinear_pool(maps, 8, KEY)


def pulses():
    spread = {"spread": 0.1, "imbalance_spread": 0.1, "bound_spread": 0.1, "noise": 0.1}
    params = {"w": jnp.zeros((3, 2))}
    for cells in (
        pulsed.constant_step(0.01, **spread),
        pulsed.linear_step(0.01, 0.5, 0.5, **spread),
        pulsed.soft_bounds(0.01, **spread),
        pulsed.power_step(0.01, 2.0, **spread),
    ):
        two = {"gain": 0.5, "read_noise": 0.1}
        for optimizer in (
            pulsed.sgd(cells, 0.1, KEY),
            pulsed.tiki_taka(cells, cells, 0.1, KEY, **two, reference_error=0.1),
            pulsed.chopped_tiki_taka(cells, cells, 0.1, KEY, **two, forget=0.5),
            pulsed.agad(cells, cells, 0.1, KEY, **two),
        ):
            jax.eval_shape(optimizer.update, params, jax.eval_shape(optimizer.init, params), params)


CASES |= {
    "pulses": pulses,
    "gradient": gradient,
    "fitted": lambda: fit(
        js.quantize(4, 8)(network()),
        X,
        LABELS,
        key=KEY,
        epochs=1,
        optimizer=optax.adam(0.1),
        batch_size=2,
        quiet=True,
    ),
    "layers pruned": lambda: called(js.prune_layers(X, 0.5)),
    "shrunk by half": lambda: called(js.shrink(0.5)),
    "layers run sparsely": sparsely,
    "made up": lambda: js.synthesize_inputs(network(), 2, key=KEY, steps=1),
    "widened": lambda: js.widen_ranges(js.deploy(js.quantize()(network()), calibrate=X), X),
    **{
        f"pruned by {name}": lambda make=make: js.prune(0.5, criterion=make(), allow_collapse=True)(
            network()
        )
        for name, make in CRITERIA.items()
    },
    **{
        f"spread by {name}": lambda make=make: masks(js.prune(0.5, distribution=make()))
        for name, make in DISTRIBUTIONS.items()
    },
    **{f"pattern {name}": lambda make=make: masks(make()) for name, make in PATTERNS.items()},
    **{name: lambda make=make: trained(make) for name, make in SPARSE.items()},
    **{
        name: lambda make=make: gates(make())
        for name, make in {
            "hard concrete": sp.hard_concrete,
            "soft threshold": sp.soft_threshold,
            "variational dropout": sp.variational_dropout,
        }.items()
    },
    "1f1b": lambda: pipelined(schedule="1f1b"),
    "gpipe": lambda: pipelined(schedule="gpipe"),
    "pyramids": pyramids,
    "levels": levels,
    "search": searched,
    "bits": bits,
    **{f"game {name}": lambda make=make: grown(make) for name, make in GAMES.items()},
    **{
        f"mixed by {name}": lambda make=make: grown(GAMES["skill"], make())
        for name, make in MIXERS.items()
    },
    "implicit": lambda: grown(GAMES["skill"], oracle=jsol.implicit(2, 1.0)),
    "exact": lambda: grown(GAMES["kuhn"], oracle=jsol.exact()),
    "approximate": lambda: grown(GAMES["kuhn"], oracle=jsol.approximate()),
    "dice": lambda: grown(GAMES["pennies"], oracle=jsol.dice(1, 1.0, 4)),
    "ppo": lambda: grown(GAMES["kuhn by logits"], oracle=jsol.ppo(1, 0.1, 4)),
    "convolutions mix": lambda: meta(jsol.ConvMixing((3,))),
    "units mix": lambda: meta(jsol.GRUMixing(3)),
    "sets mix": lambda: meta(jsol.EquivariantMixing(2, 4, start=0), each=True),
    "strategies evolve": lambda: meta(jsol.ConvMixing((3,)), "es"),
    "spreads": spreads,
    "learned": learned,
    "covered": covered,
    "circuits": circuits,
    "filters": filters,
    "together": lambda: jax.eval_shape(together),
}


def chosen(asked):
    """Names asked for, or the share of all of them that is written as `0/3`."""
    if len(asked) == 1 and asked[0].replace("/", "").isdigit():
        first, of = map(int, asked[0].split("/"))
        return list(CASES)[first::of]
    return asked or list(CASES)


if __name__ == "__main__":
    wrong = 0
    for name in chosen(sys.argv[1:]):
        try:
            CASES[name]()
        except Exception:
            wrong += 1
            print(f"{name}: {traceback.format_exc(limit=-3)}", flush=True)
    sys.exit(wrong > 0)
