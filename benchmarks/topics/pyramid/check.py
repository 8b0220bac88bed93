"""MiniLM beside that of Hugging Face, and linear heads on its frozen features."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.record import Table, record
from benchmarks.common.texts import corpus_of, minilm
from benchmarks.peers.transformers_bert import hidden_states
from benchmarks.topics.pyramid.batches import like_lengths
from benchmarks.topics.pyramid.settings import NAMES, PyramidSettings
from jaxsim.adaptive.heads import apply_head, fit_students
from jaxsim.adaptive.tokens import prefix_mask
from jaxsim.models.bert import mean_token
from jaxsim.models.hugging_face import load_bert


def check(settings: PyramidSettings) -> None:
    """MiniLM beside Hugging Face's, and linear heads on its frozen features."""
    rows: list[list[Any]] = []
    for name in settings.data:
        corpus = corpus_of(name, settings.texts)
        model, params = load_bert(minilm(), classes=corpus.classes, key=jax.random.key(0))
        ids, lengths = corpus.test.ids[:64], corpus.test.lengths[:64]
        valid = np.arange(ids.shape[1]) < lengths[:, None]
        expected = hidden_states(minilm(), ids, valid)
        states = model.apply({"params": params}, ids, lengths, method="hidden_states")
        far = max(
            float(np.abs(np.asarray(ours) - other)[valid].max())
            for ours, other in zip(states, expected, strict=True)
        )
        train, test = corpus.train, corpus.test
        read = functools.partial(_means, model, params)
        features, held = (like_lengths(read, p.ids, p.lengths) for p in (train, test))
        # Labels as the logits of a teacher that is sure: the divergence is the cross-entropy.
        sure = 30.0 * jax.nn.one_hot(train.labels, corpus.classes)
        each = [features[:, i] for i in range(model.layers)]
        heads = fit_students(each, sure, jax.random.key(0), steps=1000)
        right = [
            float(np.mean(np.argmax(apply_head(h, held[:, i]), -1) == test.labels))
            for i, h in enumerate(heads)
        ]
        rows.append([NAMES[name], f"{far:.1e}", *(f"{100 * r:.1f}" for r in right)])
    record(
        "pyramid_check",
        Table(["texts", "largest difference", *(f"layer {i + 1}, %" for i in range(6))], rows),
        question="Is this MiniLM the one of Hugging Face, and what do its frozen features say?",
        baseline="transformers and torch on the same 64 rows, all seven hidden states",
        notes="Linear heads on the mean over tokens after each layer, fitted to the training rows; "
        "test rows as in the accuracy part. Largest absolute difference of a hidden state.",
    )


@functools.partial(jax.jit, static_argnums=0)
def _means(model: Any, params: Any, ids: Any, lengths: Any) -> Any:
    """Mean over tokens after each layer, [B, L, d]."""
    states = model.apply({"params": params}, ids, lengths, method="hidden_states")
    valid = prefix_mask(lengths, ids.shape[1])
    return jnp.stack([mean_token(x, valid) for x in states[1:]], 1)
