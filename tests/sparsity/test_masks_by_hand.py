"""Masks, reports and layers of few weights, where each is looked at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.sparsity.masks import check_sparsity, make_masks, select_kept, stacks
from jaxsim.sparsity.obs import prune_layer, saliency
from jaxsim.sparsity.second_order import _blocks, example_gradients

sp = js.sparsity

A = jnp.array([[4.0, 1], [3, 2]])
B = jnp.array([[9.0, -7, 5], [8, 6, 1]])
X = jnp.ones((1, 2))


def net(**params):
    params = params or {"a": A, "b": B}
    return js.trace(lambda p, x: x @ p["a"] @ p["b"], params, X)


def masked(masks, **params):
    return dataclasses.replace(
        net(**params), masks={n: jnp.asarray(m, bool) for n, m in masks.items()}
    )


def kept(made, **options):
    options = {"pattern": sp.unstructured(), "distribution": sp.uniform()} | options
    sparsity = options.pop("sparsity", 0.5)
    scores = options.pop("scores", jax.tree.map(jnp.abs, made.params))
    found = make_masks(made, scores, sparsity, **options)
    return {n: np.asarray(m).astype(int).tolist() for n, m in found.items()}


def test_what_is_out_stays_out_and_counts_among_what_goes():
    """Of `a` two go, the 4 that was out already and the 1; of `b` 5 and the second 1 are enough."""
    made = masked({"a": [[0, 1], [1, 1]]})
    assert kept(made, sites="a") == {"a": [[0, 0], [1, 1]]}
    assert kept(made, sites="a", sparsity=0.25) == {"a": [[0, 1], [1, 1]]}
    assert kept(made, sparsity=1 / 3, sites="b") == {"b": [[1, 1, 0], [1, 1, 0]]}


def test_scores_of_what_is_out_count_nothing_in_its_unit():
    """Columns of `a` score 7/2 and 3/2; without the 4 and with a mask 3/2 each, the first goes."""
    assert kept(net(), pattern=sp.channel(), sites="a") == {"a": [[1, 0], [1, 0]]}
    made = masked({"a": [[0, 1], [1, 1]]})
    assert kept(made, pattern=sp.channel(), sites="a") == {"a": [[0, 1], [0, 1]]}
    # a unit that has lost everything is out before one that scores less than nothing
    made = masked({"a": [[0, 1], [0, 1]]})
    minus = {"a": -A, "b": B}
    assert kept(made, pattern=sp.channel(), sites="a", scores=minus) == {"a": [[0, 1], [0, 1]]}


def heads(*values, depth):
    """A kernel [3, heads, depth] of one number a head."""
    return jnp.broadcast_to(jnp.array(values, jnp.float32)[:, None], (3, len(values), depth))


def test_heads_are_tied_within_a_module_and_free_between_them():
    """A: queries (1, 5) of three weights, keys (8, 2) of nine: 6.25 and 2.75; B the other way."""
    params = {
        "A": {"q": {"kernel": heads(1, 5, depth=1)}, "k": {"kernel": heads(8, 2, depth=3)}},
        "B": {"q": {"kernel": heads(9, 1, depth=1)}, "k": {"kernel": heads(1, 4, depth=3)}},
    }

    def fn(p, x):
        leaves = [m[n]["kernel"] for m in p.values() for n in ("q", "k")]
        return sum(jnp.einsum("bd,dhk->bhk", x, w).sum((1, 2)) for w in leaves)

    found = kept(js.trace(fn, params, jnp.ones((1, 3))), pattern=sp.head(2))
    alive = {name: np.array(m).any((0, 2)).tolist() for name, m in found.items()}
    for name, module in alive.items():
        assert module == ([True, False] if name.startswith("A") else [False, True]), name
    # names without a module, two parts long at most, are one
    flat = {"a": {"kernel": heads(1, 5, depth=1)}, "b": {"kernel": heads(8, 2, depth=3)}}

    def plain(p, x):
        return sum(jnp.einsum("bd,dhk->bhk", x, w["kernel"]).sum((1, 2)) for w in p.values())

    found = kept(js.trace(plain, flat, jnp.ones((1, 3))), pattern=sp.head(2))
    assert [np.array(m).any((0, 2)).tolist() for m in found.values()] == [[True, False]] * 2


def test_layers_are_not_left_empty_unless_that_is_meant():
    tiny = {"a": A / 100, "b": B}
    with pytest.raises(ValueError, match=r"sparsity=0.4: nothing is left of a"):
        kept(net(**tiny), sparsity=0.4, distribution=sp.global_())
    found = kept(net(**tiny), sparsity=0.4, distribution=sp.global_(), allow_collapse=True)
    assert found == {"a": [[0, 0], [0, 0]], "b": [[1, 1, 1], [1, 1, 1]]}
    found = kept(net(**tiny), sparsity=0.3, distribution=sp.global_())
    assert found["a"] == [[1, 0], [0, 0]]


def test_scores_that_are_none_are_refused():
    for bad in (jnp.nan,):
        with pytest.raises(ValueError, match="scores of a: some are NaN"):
            kept(net(), scores={"a": A.at[1, 1].set(bad), "b": B})
    assert kept(net(), scores={"a": A.at[1, 1].set(jnp.inf), "b": B}, sites="a") == {
        "a": [[1, 0], [0, 1]]
    }


@pytest.mark.parametrize(
    ("sparsity", "pattern", "told"),
    [
        (0.5, sp.n_of_m(1, 4), "the pattern fixes it at 0.75"),
        (None, sp.unstructured(), "this pattern does not fix it"),
        (1.0, sp.unstructured(), "sparsity=1.0"),
        (-1e-6, sp.unstructured(), "sparsity=-1e-06"),
    ],
)
def test_a_sparsity_is_a_share_and_is_told_once(sparsity, pattern, told):
    with pytest.raises(ValueError, match=told):
        check_sparsity(sparsity, pattern)
    check_sparsity(0, sp.unstructured())
    check_sparsity(1 - 1e-6, sp.unstructured())
    check_sparsity(None, sp.n_of_m(1, 4))


def test_trees_are_taken_where_masks_say_and_elsewhere_the_first():
    found = select_kept(
        {"a": jnp.array([True, False])}, {"a": jnp.ones(2), "b": 3}, {"a": 7, "b": 9}
    )
    assert (found["a"].tolist(), found["b"]) == ([1, 7], 3)
    assert stacks(net(), "*") == {"a": (), "b": ()}


def test_a_report_counts_bits_and_operations_by_hand():
    """Three rows through (2, 2) with 3 of 4 and (2, 3) with 2 of 6: 12 and 18 products a call."""
    made = js.trace(
        lambda p, x: x @ p["a"] @ p["b"],
        {"a": A.at[0, 0].set(0), "b": B},
        jnp.ones((3, 2)),
    )
    made = dataclasses.replace(made, masks={"b": jnp.array([[1, 0, 0], [0, 0, 1]], bool)})
    report = js.sparsity_report(
        made, value_bits=8, formats=(sp_form("bitmap"), sp_form("nm", 1, 2))
    )
    a, b = report.rows
    assert (a.name, a.size, a.nonzero, a.macs) == ("a", 4, 3, 12)
    assert (b.name, b.size, b.nonzero, b.macs) == ("b", 6, 2, 18)
    assert a.bits == {"dense": 32, "bitmap": 28, "1:2": None, "bound": 26}
    # of each column one of two rows: 3 (8 + 1); 15 choices of 2 of 6 are 4 bits
    assert b.bits == {"dense": 48, "bitmap": 22, "1:2": 27, "bound": 20}
    assert (a.best, b.best) == ("bitmap", "bitmap")
    assert report.macs == 30
    assert report.useful == 12 * 3 / 4 + 18 * 2 / 6
    assert report.compression == 80 / 50
    shown = str(report)
    for cell in ("1.60x", "50.0%", "75.0%", "33.3%", "–", "27"):
        assert cell in shown
    with pytest.raises(ValueError, match="value_bits=0"):
        js.sparsity_report(made, value_bits=0)


def sp_form(name, *sizes):
    return getattr(js.storage, name)(*sizes)


def test_a_weight_of_a_surgeon_costs_its_square_over_the_inverse():
    """H = (2, 1; 1, 2), mean 2, no damping: H/2 has the inverse (4, -2; -2, 4) / 3."""
    gram = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    cost, change = saliency(jnp.array([[3.0], [1.0]]), gram, 0.0)
    np.testing.assert_allclose(cost, [[27 / 4], [3 / 4]], rtol=1e-5)
    np.testing.assert_allclose(change, [[-1, 0.5], [0.5, -1]], rtol=1e-5)
    # damped by half of the mean the matrix is (3/2, 1/2; …), its inverse (3, -1; -1, 3) / 4
    cost, change = saliency(jnp.array([[3.0], [1.0]]), gram, 0.5)
    np.testing.assert_allclose(cost, [[12], [4 / 3]], rtol=1e-5)
    np.testing.assert_allclose(change, [[-1, 1 / 3], [1 / 3, -1]], rtol=1e-5)
    # of a gram of zeros only the damping is left
    cost, _ = saliency(jnp.array([[3.0]]), jnp.zeros((1, 1)), 0.5)
    np.testing.assert_allclose(cost, [[4.5]])


def test_a_weight_that_goes_moves_what_follows():
    """With H = (2, 1; 1, 2) the first of (1, 3) goes, and half of it is added to the second."""
    gram = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    q, mask = prune_layer(jnp.array([[1.0], [3.0]]), gram, 0.5, damping=0.0)
    assert mask.tolist() == [[False], [True]]
    np.testing.assert_allclose(q, [[0], [3.5]], rtol=1e-5)
    # the first costs 3/4 of its square, as the second makes up for it, the second all of its own
    for second, stays in ((0.8, [[True], [False]]), (0.9, [[False], [True]])):
        for keep in (None, (1, 2)):
            w = jnp.array([[1.0], [second]])
            assert prune_layer(w, gram, 0.5, damping=0.0, keep=keep)[1].tolist() == stays


def test_blocks_of_gradients_are_filled_up_with_zeros():
    g = jnp.arange(12.0).reshape(2, 3, 2)
    whole = [[[0, 1, 2, 3], [4, 5, 0, 0]], [[6, 7, 8, 9], [10, 11, 0, 0]]]
    assert _blocks(g, 1, 4).tolist() == whole
    layers = [[[0, 1], [2, 0], [3, 4], [5, 0]], [[6, 7], [8, 0], [9, 10], [11, 0]]]
    assert _blocks(g, 2, 2).tolist() == layers
    assert _blocks(g, 1, 6).shape == (2, 1, 6)
    assert _blocks(g, 1, 7).shape == (2, 1, 6)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_examples_count_alike_whatever_the_batches(batch):
    """Slopes 1, 2, 4, 6 and 8 in batches of three and two: 121 / 5 in the mean, by w² / 2 = 2."""
    one = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[2.0]])}, jnp.ones((1, 1)))
    data = [jnp.array([[1.0], [2], [4]]), jnp.array([[6.0], [8]])]
    total = lambda net, x: net(x).sum()  # noqa: E731
    score = sp.fisher(total, data, batch=batch).score(one, ())["w"]
    np.testing.assert_allclose(score, [[2 * 121 / 5]], rtol=1e-6)
    score = sp.wood_fisher(total, data, batch=batch, damping=0.8).score(one, ())["w"]
    np.testing.assert_allclose(score, [[2 * (0.8 + 121 / 5)]], rtol=1e-5)
    sizes = [len(g["w"]) for g in example_gradients(one, total, data[0], batch)]
    assert sizes == [1, 1, 1] if batch == 1 else [2, 1] if batch == 2 else [3]


def test_weights_of_unlike_blocks_do_not_meet():
    """Gradients (1, 1): together F = 1 + all ones; in blocks of one 2 each: 2 and 3/2 · w² / 2."""
    two = js.trace(lambda p, x: x @ p["w"], {"w": jnp.array([[1.0], [2]])}, jnp.ones((1, 2)))
    total = lambda net, x: net(x).sum()  # noqa: E731
    for block, per in ((1, 2.0), (2, 1.5)):
        score = sp.wood_fisher(total, jnp.ones((1, 2)), block=block, damping=1.0).score(two, ())
        np.testing.assert_allclose(score["w"], [[per / 2], [4 * per / 2]], rtol=1e-5)


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "batch=0": lambda: sp.fisher(None, X, batch=0),
        "block=0": lambda: sp.wood_fisher(None, X, block=0),
        "damping=0": lambda: sp.wood_fisher(None, X, damping=0),
        "samples=0": lambda: sp.obd(None, key=jax.random.key(0), samples=0),
    }.items(),
)
def test_numbers_out_of_range_are_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_channels_that_flow_in_and_out_by_hand():
    """Scales are spread over their kernel's outputs; distances of rows are |4 - 3|, |1 - 2|."""
    params = {"w": A, "s": jnp.array([0.5, -2.0]), "long": jnp.ones(3)}
    made = js.trace(lambda p, x: (x @ p["w"] * p["s"]) + p["long"].sum(), params, X)
    score = sp.batch_norm_scale({"w": "s"}).score(made, ())
    np.testing.assert_array_equal(score["w"], [[0.5, 2], [0.5, 2]])
    assert not np.any(score["s"])
    for scales, told in (
        ({"w": "long"}, r"long has \(3,\) values for the 2 outputs of w"),
        ({"v": "s"}, "'v' is no parameter"),
        ({"w": "v"}, "'v' is no parameter"),
    ):
        with pytest.raises(ValueError, match=told):
            sp.batch_norm_scale(scales).score(made, ())
    rows = sp.redundancy(0).score(made, ())
    np.testing.assert_allclose(rows["w"], np.full((2, 2), np.sqrt(2)), rtol=1e-5)
    columns = sp.redundancy().score(made, ())
    np.testing.assert_allclose(columns["w"], np.full((2, 2), np.sqrt(9 + 1)), rtol=1e-5)
    assert columns["s"].tolist() == [0, 0]


def test_inputs_are_measured_over_all_batches():
    """Channel 0 is 0, 2, 4 and 0: half are not zero, variance 11/4; channel 1 is 1 throughout."""
    made = js.trace(lambda p, x: x @ p["w"], {"w": A}, X)
    data = [jnp.array([[0.0, 1], [2, 1], [4, 1]]), jnp.array([[0.0, 1]])]
    active = sp.activity(data).score(made, ())["w"]
    np.testing.assert_allclose(active, [[0.5, 0.5], [1, 1]])
    varied = sp.activation_variance(data).score(made, ())["w"]
    np.testing.assert_allclose(varied, [[2.75, 2.75], [0, 0]], atol=1e-6)


@pytest.mark.parametrize(("share", "count"), [(0.1, 0), (0.125, 0), (0.13, 1), (0.5, 2), (1.0, 4)])
def test_a_share_of_values_is_rounded_and_of_gradients_at_least_one(share, count):
    x = jnp.array([3.0, -4, 4, 1])
    assert int((sp.topk(x, share) != 0).sum()) == count
    assert sp.topk(x, 0.25).tolist() == [0, -4, 0, 0]
    tx = sp.topk_gradient(share)
    sent, state = tx.update(x, tx.init(x))
    assert int((sent != 0).sum()) == max(count, 1)
    np.testing.assert_array_equal(sent + state.error, x)
