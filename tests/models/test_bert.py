"""BERT beside a float64 one, and weights under other names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.models.bert import Bert, first_token, from_hugging_face, mean_token
from jaxsim.models.hugging_face import load_bert
from tests.oracles.pyramid import climb
from tests.support.encoders import MODEL, params, sequences

CONFIG = {
    "vocab_size": 50,
    "max_position_embeddings": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


def named(params):
    """Our parameters under Hugging Face's names."""
    arrays = {}

    def put(name, p):
        weight = p["kernel"].T if "kernel" in p else p["scale"]
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = np.array(weight), np.array(p["bias"])

    for kind, name in (("word", "word"), ("position", "position"), ("type", "token_type")):
        table = np.array(params["embedding"][kind])
        arrays[f"embeddings.{name}_embeddings.weight"] = table
    put("embeddings.LayerNorm", params["embedding"]["norm"])
    for i in range(3):
        layer, half = f"encoder.layer.{i}", params[f"attention_{i}"]
        for name in ("query", "key", "value"):
            put(f"{layer}.attention.self.{name}", half[name])
        put(f"{layer}.attention.output.dense", half["mix"])
        put(f"{layer}.attention.output.LayerNorm", half["norm"])
        half = params[f"feed_forward_{i}"]
        put(f"{layer}.intermediate.dense", half["hidden"])
        put(f"{layer}.output.dense", half["output"])
        put(f"{layer}.output.LayerNorm", half["norm"])
    return arrays


def written(folder, arrays, config=CONFIG):
    """A folder as Hugging Face has them."""
    header, data = {}, b""
    for name, a in arrays.items():
        place = [len(data), len(data) + a.nbytes]
        header[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": place}
        data += a.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_model_is_the_float64_one():
    ids, lengths = sequences(5)
    heads = [params()["head"]] * 3
    expected = [
        climb(params(), 2, ids[r, :n], heads, np.zeros(3), 0.0)[0] for r, n in enumerate(lengths)
    ]
    found = jax.jit(MODEL.apply)({"params": params()}, ids, lengths)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_pools_read_the_first_token_or_the_mean_of_those_present():
    x = jnp.arange(2 * 3 * 2.0).reshape(2, 3, 2)
    valid = jnp.array([[True, True, False], [True, True, True]])
    assert first_token(x, valid).tolist() == [[0, 1], [6, 7]]
    np.testing.assert_allclose(mean_token(x, valid), [[1, 2], [8, 9]])


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_weights_come_back_under_their_own_names(tmp_path, prefix):
    arrays = {prefix + name: a for name, a in named(params()).items()}
    model, found = load_bert(
        written(tmp_path, arrays), classes=3, key=jax.random.key(0), pool=first_token
    )
    assert model == MODEL.clone(pool=first_token)
    expected = {**params(), "head": found["head"]}
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    assert found["head"]["kernel"].shape == (16, 3)


def test_arrays_and_configurations_that_do_not_fit_are_named():
    arrays = named(params())

    def load(arrays=arrays, **changes):
        from_hugging_face(arrays, {**CONFIG, **changes}, classes=3, key=jax.random.key(0))

    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        load(hidden_act="relu")
    with pytest.raises(ValueError, match="position_embedding_type"):
        load(position_embedding_type="relative_key")
    with pytest.raises(ValueError, match=r"no encoder\.layer\.3"):
        load(num_hidden_layers=4)
    with pytest.raises(ValueError, match=r"hidden.*is \[32\], must be \[64\]"):
        load(intermediate_size=64)
    with pytest.raises(ValueError, match="no 'vocab_size'"):
        from_hugging_face(arrays, {}, classes=3, key=jax.random.key(0))


@pytest.mark.parametrize(
    "settings", [{"heads": 3}, {"layers": 0}, {"classes": 1}, {"vocabulary": 0}]
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Bert(width=16, **settings).init(jax.random.key(0), np.zeros((1, 2), int), np.ones(1, int))


def test_a_sequence_beyond_the_positions_is_refused():
    with pytest.raises(ValueError, match="at most 40"):
        MODEL.apply({"params": params()}, np.zeros((1, 41), int), np.ones(1, int))


@pytest.mark.slow
def test_hidden_states_are_those_of_hugging_face(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**CONFIG, attn_implementation="eager")
    torch.manual_seed(0)
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    arrays = {k: v.numpy() for k, v in theirs.state_dict().items() if v.dtype == torch.float32}
    model, found = load_bert(written(tmp_path, arrays), classes=2, key=jax.random.key(0))
    ids, lengths = sequences(5)
    valid = np.arange(24) < lengths[:, None]
    with torch.no_grad():
        expected = theirs(
            torch.tensor(ids).long(),
            attention_mask=torch.tensor(valid).long(),
            output_hidden_states=True,
        ).hidden_states
    states = model.apply({"params": found}, ids, lengths, method="hidden_states")
    for ours, state in zip(states, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours)[valid], state.numpy()[valid], atol=2e-5)
