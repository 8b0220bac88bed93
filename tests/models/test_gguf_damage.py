"""Damaged files are read or refused in one sentence."""

import pytest

pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")
from tests.support import gguf_damage


def test_damaged_files_are_read_or_refused_in_a_sentence(tmp_path):
    found = gguf_damage.outcomes(300, tmp_path)
    assert set(found) == {"read", "refused"}, found
    assert found["refused"] > 150
