"""BERT by Hugging Face's transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def hidden_states(folder: Path, ids: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Hidden states of a stored model: the embedding, then one after each layer.

    Args:
      folder: of weights and configuration.
      ids: word pieces, [B, n].
      valid: which of them are there, [B, n].
    """
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        states = model(
            torch.tensor(ids).long(),
            attention_mask=torch.tensor(valid).long(),
            output_hidden_states=True,
        ).hidden_states
    return [state.numpy() for state in states]
