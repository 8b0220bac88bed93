"""Tokens leave transformers of every kind, masked and compacted, as row by row in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.oracles import tokens as oracle
from tests.support import transformers
from tests.support.transformers import KINDS, inputs, network, params, present

LEVEL = np.array([0.08, 0.1, 0.13])
BUCKETS = js.Buckets(batch=2, token=2, max_batch=4)


def expected(name, level=LEVEL, **rule):
    kind = KINDS[name]
    ids, *lengths = inputs(kind)
    each = np.asarray(lengths[0]) if lengths else [None] * len(ids)
    rows = [oracle.row(kind, params(), i, level, length=n, **rule) for i, n in zip(ids, each, strict=True)]
    assert min(row.margin for row in rows) > 1e-5  # else rounding decides
    return rows


def agrees(found, rows):
    np.testing.assert_array_equal(found.kept, [row.kept for row in rows])
    logits = np.stack([row.logits for row in rows])
    np.testing.assert_allclose(found.logits, logits, rtol=0, atol=2e-5 * np.abs(logits).max())


def options(name):
    return {"protect_last": 1} if KINDS[name].pool == "last" else {}


@pytest.mark.parametrize("keeps", ["above", "top"])
@pytest.mark.parametrize("name", KINDS)
def test_tokens_leave_as_if_they_were_taken_away(name, keeps):
    level = LEVEL if keeps == "above" else np.array([0.0, 0.4, 0.3])
    rows = expected(name, level, keeps=keeps, **options(name))
    assert 1 < np.mean([row.kept[-1] for row in rows]) < 0.7 * transformers.TOKENS
    args = inputs(KINDS[name])
    net = js.prune_tokens(level, keeps=getattr(js.tokens, keeps), **options(name))(network(name))
    agrees(net.simulate(*args), rows)
    agrees(net.run(*args, buckets=BUCKETS), rows)
