"""FLOPs of a layer and of a BERT of twelve layers, by formula and as XLA counts them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.record import Table, record
from benchmarks.topics.pyramid.settings import PyramidSettings
from jaxsim.adaptive.rule import Rule
from jaxsim.adaptive.tokens import pruning_ratios, top
from jaxsim.models.bert import Attention, Bert, FeedForward
from jaxsim.network.tracing import trace
from jaxsim.transforms.magic_pyramid import magic_pyramid


def flops(settings: PyramidSettings) -> None:
    """The formula beside XLA's count, and the account of a BERT of twelve layers."""
    rows: list[list[Any]] = []
    for name, n, width, hidden in (
        ("MiniLM", 48, 384, 1536),
        ("MiniLM", 128, 384, 1536),
        ("BERT-base", 128, 768, 3072),
    ):
        x, valid = jax.ShapeDtypeStruct((1, n, width), jnp.float32), jnp.ones((1, n), bool)
        counted = _counted(Attention(12, 1e-12), x, valid) + _counted(FeedForward(hidden, 1e-12), x)
        formula = flops_layer(n, n, width, hidden)
        rows.append([name, n, *(f"{f / 1e6:.1f}" for f in (formula, counted))])
        rows[-1].append(f"{100 * (counted / formula - 1):.1f}")
    model = Bert(width=768, heads=12, layers=12, hidden=3072)
    ids = np.random.default_rng(0).integers(0, model.vocabulary, (2, 128)).astype(np.int32)
    lengths = np.full(2, 128, np.int32)
    params = jax.jit(model.init)(jax.random.key(0), ids[:1], lengths[:1])["params"]
    net = trace(model, {"params": params}, ids, lengths)
    account: list[list[Any]] = []
    whole = 0.0
    for name, left, last in (
        ("whole", 1.0, 12),
        ("30 % of the tokens left after the last layer", 0.3, 12),
        ("every row leaves after 6", 1.0, 6),
        ("both", 0.3, 6),
    ):
        rule = Rule() if last == 12 else Rule(1.1, first=last)
        made = magic_pyramid(pruning_ratios(left, 12), rule, keeps=top)(net)
        out = made.simulate(ids, lengths)
        spent = float(out.flops.mean())
        whole = whole or spent
        kept = " ".join(map(str, np.asarray(out.kept[0])))
        account.append([name, f"{spent / 1e9:.2f}", f"{whole / spent:.2f}", kept])
    record(
        "pyramid_flops",
        Table(
            ["layer", "tokens", "formula, MFLOP", "XLA, MFLOP", "XLA counts more, %"],
            rows,
            "One layer",
        ),
        Table(
            ["BERT-base, 128 tokens", "GFLOP a row", "times fewer", "tokens after each layer"],
            account,
            "Twelve layers of random weights, by rank and at a fixed exit",
        ),
        question="Does the formula count what XLA counts, and what do tokens and layers save?",
        baseline="the whole encoder",
        notes="The formula counts the matrix products, a multiply-accumulate as 2; XLA also counts "
        "softmax, gelu and normalization. The account is of `simulate`, which counts what `run` "
        "computes; what random weights say is not looked at.",
    )


def flops_layer(n_in: int, n_out: int, width: int, hidden: int) -> int:
    """Operations of one layer's products, a multiply-accumulate as 2.

    The projections, scores and mixtures of `n_in` tokens, and the two products of the feed-forward
    half of `n_out`.
    """
    return 8 * n_in * width**2 + 4 * n_in**2 * width + 4 * n_out * width * hidden


def _counted(half: Any, *inputs: Any) -> float:
    variables = jax.eval_shape(half.init, jax.random.key(0), *inputs)
    cost = jax.jit(half.apply).lower(variables, *inputs).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]
