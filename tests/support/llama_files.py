"""A tiny decoder in the files that decoders come in, written field by field."""

import functools
import json
import struct

import jax
import numpy as np

from jaxsim.models.llama import tiny

MODEL = tiny()
LETTERS = [chr(c) for c in range(33, 124)]  # 91
TOKENS = ["<s>", *LETTERS, "Ġ", "th", "the", "er"]
MERGES = ["t h", "th e", "e r"]
FORMS = {str: ("<Q{}s", 8), bool: ("<?", 7), int: ("<I", 4), float: ("<f", 6)}


@functools.cache
def params(model=MODEL):
    """Random parameters, far from the small ones of an initialization."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    draws = np.random.default_rng(0)

    def value(path, shape):
        small = 0.1 * draws.normal(size=shape.shape)
        return np.float32(1 + small if path[-1].key == "scale" else 3 * small)

    return jax.tree_util.tree_map_with_path(value, shapes)


def tensors(model=MODEL):
    """The parameters as a GGUF file has them: by name, [outputs, inputs], pairs side by side."""
    found = params(model)
    layers = found["layers"]
    names = {
        "attn_norm": ("attention_norm", "scale"),
        "ffn_norm": ("feed_forward_norm", "scale"),
        **{f"attn_{n[0]}": ("attention", n, "kernel") for n in ("query", "key", "value")},
        "attn_output": ("attention", "mix", "kernel"),
        **{f"ffn_{n}": ("feed_forward", n, "kernel") for n in ("gate", "up", "down")},
    }
    written = {
        "token_embd.weight": found["embedding"],
        "output_norm.weight": found["norm"]["scale"],
    }
    for i in range(model.layers):
        for name, path in names.items():
            array = functools.reduce(lambda tree, key: tree[key], path, layers)[i].T
            heads = {"attn_q": model.heads, "attn_k": model.groups}.get(name)
            if heads:
                d = array.shape[0] // heads
                # row j of a head's half goes to 2 j, or 2 j + 1
                order = [
                    h * d + half * d // 2 + j
                    for h in range(heads)
                    for j in range(d // 2)
                    for half in (0, 1)
                ]
                array = array[order]
            written[f"blk.{i}.{name}.weight"] = np.ascontiguousarray(array)
    if not model.tied:
        written["output.weight"] = np.ascontiguousarray(found["head"]["kernel"].T)
    return written


def fields(model=MODEL, **others):
    """The metadata."""
    found = {
        "general.architecture": "llama",
        "llama.block_count": model.layers,
        "llama.context_length": model.context,
        "llama.embedding_length": model.width,
        "llama.feed_forward_length": model.hidden,
        "llama.attention.head_count": model.heads,
        "llama.attention.head_count_kv": model.groups,
        "llama.rope.freq_base": float(model.base),
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(model.epsilon)),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": [3] + [1] * (len(TOKENS) - 1),
        "tokenizer.ggml.add_bos_token": False,
    }
    found.update({key.replace("__", "."): value for key, value in others.items()})
    return {key: value for key, value in found.items() if value is not None}


def text(value):
    """A string with its length before it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def field(key, value):
    """A key with the type and the bytes of its value."""
    if isinstance(value, bytes):  # as it is
        return text(key) + value
    if isinstance(value, list):
        kind, body = (
            (8, b"".join(map(text, value)))
            if isinstance(value[0], str)
            else (
                5,
                struct.pack(f"<{len(value)}i", *value),
            )
        )
        return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + body
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    form, kind = FORMS[type(value)]
    return text(key) + struct.pack("<I", kind) + struct.pack(form, value)


def gguf_file(metadata, arrays, kinds="F32", version=3):
    """The bytes of a file.

    Args:
      metadata: Values by key.
      arrays: Arrays by name; one that is a tuple of type, shape and bytes is written so.
      kinds: Type of the matrices, or a function from their names to it; vectors are F32.
      version: Of the format.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    head, body = b"", b""
    for name, array in arrays.items():
        if not isinstance(array, tuple):
            kind = kinds if isinstance(kinds, str) else kinds(name)
            kind = GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
            array = kind, array.shape, quantize(array, kind).tobytes()
        kind, shape, data = array
        body += b"\0" * (-len(body) % 32)
        head += text(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(body)
        )
        body += data
    counts = b"GGUF" + struct.pack("<IQQ", version, len(arrays), len(metadata))
    head = counts + b"".join(field(*of) for of in metadata.items()) + head
    return head + b"\0" * (-len(head) % 32) + body


CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


def hugging_face_arrays(model=MODEL):
    """The parameters under Hugging Face's names, pairs in halves."""
    found = params(model)
    names = {
        "input_layernorm": ("attention_norm", "scale"),
        "post_attention_layernorm": ("feed_forward_norm", "scale"),
        "self_attn.q_proj": ("attention", "query", "kernel"),
        "self_attn.k_proj": ("attention", "key", "kernel"),
        "self_attn.v_proj": ("attention", "value", "kernel"),
        "self_attn.o_proj": ("attention", "mix", "kernel"),
        **{f"mlp.{n}_proj": ("feed_forward", n, "kernel") for n in ("gate", "up", "down")},
    }
    arrays = {
        "model.embed_tokens.weight": found["embedding"],
        "model.norm.weight": found["norm"]["scale"],
    }
    for i in range(model.layers):
        for name, path in names.items():
            array = functools.reduce(lambda tree, key: tree[key], path, found["layers"])[i]
            arrays[f"model.layers.{i}.{name}.weight"] = array.T
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def safetensors_file(arrays):
    """The bytes of a file of arrays in float32."""
    header, data = {}, b""
    for name, a in arrays.items():
        place = [len(data), len(data) + a.nbytes]
        header[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": place}
        data += a.tobytes()
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data
