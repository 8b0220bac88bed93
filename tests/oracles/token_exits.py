"""A Llama decoder in NumPy, token by token, whose tokens leave behind early layers.

What is read is in double precision, weights by the names of a GGUF file.
"""

import numpy as np

from tests.oracles.llama import normalized, softmax, turned


class Reader:
    """Reads tokens one after the other, and keeps keys and values of each layer."""

    def __init__(self, tensors, *, layers, heads, groups, base, epsilon):
        self.tensors = {name: np.float64(a) for name, a in tensors.items()}
        self.layers, self.heads, self.groups = layers, heads, groups
        self.base, self.epsilon = base, epsilon
        self.keys = [[] for _ in range(layers)]
        self.values = [[] for _ in range(layers)]

    def logits(self, x):
        x = normalized(x, self.tensors["output_norm.weight"], self.epsilon)
        return x @ self.tensors["token_embd.weight"].T

    def turn(self, head):
        place = len(self.keys[self.at]) - 1
        return turned(np.tile(head, (place + 1, 1)), self.base)[-1]

    def layer(self, x, *, left):
        def w(name):
            return self.tensors[f"blk.{self.at}.{name}.weight"]

        h = normalized(x, w("attn_norm"), self.epsilon)
        self.keys[self.at].append(None)
        keys = np.split(w("attn_k") @ h, self.groups)
        self.keys[self.at][-1] = [self.turn(k) for k in keys]
        self.values[self.at].append(np.split(w("attn_v") @ h, self.groups))
        if left:
            return x
        mixed = []
        for head, q in enumerate(np.split(w("attn_q") @ h, self.heads)):
            group, q = head * self.groups // self.heads, self.turn(q)
            scores = np.array([q @ k[group] for k in self.keys[self.at]]) / np.sqrt(len(q))
            mixed.append(softmax(scores) @ np.array([v[group] for v in self.values[self.at]]))
        x = x + w("attn_output") @ np.concatenate(mixed)
        h = normalized(x, w("ffn_norm"), self.epsilon)
        gate = w("ffn_gate") @ h
        return x + w("ffn_down") @ (gate / (1 + np.exp(-gate)) * (w("ffn_up") @ h))

    def read(self, token, after=(), threshold=np.inf, confidence="gap"):
        """Logits behind a token, the number of layers that it had, and how sure each exit was."""
        x = before = self.tensors["token_embd.weight"][token]
        had, sures = None, []
        for i in range(self.layers):
            self.at = i
            x = self.layer(x, left=had is not None)
            if i + 1 in after and had is None:
                if confidence == "gap":
                    first, second = np.sort(softmax(self.logits(x)))[:-3:-1]
                    sures.append(first - second)
                else:
                    cosine = x @ before / np.linalg.norm(x) / np.linalg.norm(before)
                    sures.append(max(cosine, 0))
                    before = x
                if sures[-1] >= threshold:
                    had = i + 1
        return self.logits(x), had or self.layers, sures


def written(reader, prompt, count, **rule):
    """Tokens written greedily and the layers of each; the prompt is read by all of them."""
    for token in prompt:
        logits, layers, _ = reader.read(token)
    tokens, had = [int(np.argmax(logits))], [layers]
    thresholds = rule.pop("thresholds", None)
    while len(tokens) < count:
        if thresholds is not None:
            rule["threshold"] = thresholds[len(tokens)]
        logits, layers, _ = reader.read(tokens[-1], **rule)
        tokens.append(int(np.argmax(logits)))
        had.append(layers)
    return tokens, had
