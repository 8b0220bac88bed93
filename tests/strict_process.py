"""One case a feature under JAX's strict modes: `python -m tests.strict_process`.

Both modes are global, and refuse what the tests themselves may do.
"""

import sys
import traceback

import jax
import numpy as np

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import jax.numpy as jnp  # noqa: E402
from flax import linen as nn  # noqa: E402

import jaxsim as js  # noqa: E402
from jaxsim import clipping  # noqa: E402

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
X = rng.normal(size=(4, 6, 6, 3)).astype("f")


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        return nn.Dense(4)(x.mean((1, 2)))


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
    import dataclasses

    for t in (js.quantize(4, 8), js.compose(js.quantize(4, 8), js.slice_bits(2), js.analog(adc=8))):
        q = t(network())
        jax.eval_shape(jax.grad(lambda p, q=q: dataclasses.replace(q, params=p)(X).sum()), q.params)


def fitted():
    js.train.fit(js.quantize(4, 8)(network()), X, jnp.zeros(4, jnp.int32), key=KEY, epochs=1)


CASES |= {"gradient": gradient}

if __name__ == "__main__":
    wrong = 0
    for name, run in CASES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        try:
            run()
        except Exception:
            wrong += 1
            print(f"{name}: {traceback.format_exc(limit=-3)}")
    sys.exit(wrong > 0)
