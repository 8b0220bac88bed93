"""Programs as users write them, for the type checker: `make lint` reads it, nothing runs it."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable
from typing import assert_type

import jax
import numpy as np
import optax

import jaxsim as js
import jaxsim.cascades as jc
from jaxsim.accelerators import Part, Spent
from jaxsim.adaptive.heads import apply_head, fit_students
from jaxsim.collaborative import make_dictionary
from jaxsim.train import cross_entropy, distillation_targets, fit

KEY = jax.random.key(0)


def a_transform_keeps_the_kind_of_network(net: js.Network, staged: js.Staged) -> None:
    chip = js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(adc=8))
    assert_type(chip(net), js.Network)
    assert_type(chip(staged), js.Staged)
    assert_type(js.prune(0.5)(staged), js.Staged)
    assert_type(js.shrink(0.5)(staged), js.Staged)
    assert_type(js.rules({"a": js.quantize(8, 8), "*": js.quantize(4, 8)})(staged), js.Staged)
    assert_type(js.deploy(chip(staged), key=KEY), js.Staged)
    assert_type(js.load("chip", like=staged), js.Staged)
    assert_type(staged.with_params(staged.params), js.Staged)
    optimizer = optax.adam(1e-3)
    trained = fit(staged, np.ones((4, 3)), np.zeros(4, int), epochs=1, optimizer=optimizer, key=KEY)
    assert_type(trained, js.Staged)


def what_cuts_a_network_makes_stages(net: js.Network) -> None:
    exits = js.exit_early(4)
    assert_type(exits(net), js.Staged)
    assert_type(js.prune_tokens(0.1)(net), js.Staged)
    assert_type(js.pipeline_shard(2, 4)(net), js.Staged)
    assert_type(js.compose(exits, js.pipeline_shard(2, 4)), Callable[[js.Network], js.Staged])
    js.quantize(8, 8)(net).run(np.ones(3))  # pyright: ignore[reportAttributeAccessIssue]


def a_function_of_ones_own_is_a_transform(net: js.Network) -> None:
    def own(net: js.Network) -> js.Network:
        return net

    assert_type(js.compose(js.quantize(8, 8), own)(net), js.Network)
    js.rules({"*": own})(net)
    js.Option(own)
    js.compose(lambda net: 1)  # pyright: ignore


def every_format_quantizes(net: js.Network) -> None:
    for form in (js.Grid(4), js.nf4(), js.e4m3(), js.mx("e2m1"), js.nvfp4(), js.BlockGrid("Q4_1")):
        js.quantize(form, None)(net)
    js.quantize(None, js.nvfp4())
    js.quantize("int8")  # pyright: ignore[reportArgumentType]


def a_part_of_ones_own_is_a_part() -> None:
    js.Accelerator({"free": Part(lambda work: "", lambda work: Spent({}, 0, 0.0))})


def numpy_serves_where_jax_does(logits: jax.Array) -> None:
    classes = np.zeros(4, int)
    cross_entropy(logits, classes)
    distillation_targets(logits, classes)
    make_dictionary(logits, classes, 2, 0.1)
    heads = fit_students([np.ones((4, 3))], logits, KEY)
    apply_head(heads[0], np.ones((4, 3)))
    graph = jc.from_edges([0, 1], [1, 2], [0.5, 0.5])
    jc.simulate_ic(graph, [0], KEY, 100)
    jc.simulate_ic(graph, np.array([0]), KEY, 100)
