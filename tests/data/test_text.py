"""Texts in the forms that their corpora have, and word pieces of them."""

import json

import numpy as np
import pytest

from jaxsim.data.text import ag_news, sst2
from jaxsim.models.hugging_face import word_pieces


def test_ag_news_joins_titles_and_descriptions(tmp_path, monkeypatch):
    folder = tmp_path / "text"
    folder.mkdir()
    rows = '"3","A ""title""","Its text, in full"\n"1","B","C"\n'
    (folder / "ag_news_test.csv").write_text(rows)
    monkeypatch.setenv("JAXSIM_DATA", str(tmp_path))
    found = ag_news("test")
    assert found.texts == ('A "title" Its text, in full', "B C")
    assert found.labels.tolist() == [2, 0]
    assert [found.classes[i] for i in found.labels] == ["Business", "World"]
    with pytest.raises(FileNotFoundError):
        ag_news("train")


def test_sst2_takes_the_label_behind_the_last_tab(tmp_path):
    (tmp_path / "sst2_dev.tsv").write_text("a fine\u2028film\t1\nno\tgood\t0\n")
    found = sst2("dev", tmp_path)
    assert found.texts == ("a fine\u2028film", "no\tgood")
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize("row", ['"5","a","b"', '"1","a"', "x"])
def test_rows_of_another_form_are_named(tmp_path, row):
    (tmp_path / "ag_news_test.csv").write_text(f'"1","a","b"\n{row}\n')
    (tmp_path / "sst2_dev.tsv").write_text(f"fine\t1\n{row}\n")
    for read, split in ((ag_news, "test"), (sst2, "dev")):
        with pytest.raises(ValueError, match="row 2"):
            read(split, tmp_path)


def test_lines_are_counted_through_texts_that_hold_their_ends(tmp_path):
    """A first row of two lines, and a bad second one of two: it begins on the third."""
    (tmp_path / "ag_news_train.csv").write_text('"1","a\nb","c"\n"0","d\n","e"\n')
    with pytest.raises(ValueError, match=r"train\.csv', line 3: row 2 is no class 1 to 4"):
        ag_news("train", tmp_path)
    (tmp_path / "ag_news_train.csv").write_text('"9","a","b"\n')
    with pytest.raises(ValueError, match="line 1: row 1 is no class"):
        ag_news("train", tmp_path)
    (tmp_path / "sst2_test.tsv").write_text("fine\t1\nbad\t2\n")
    with pytest.raises(ValueError, match=r"test\.tsv', line 2: row 2 is no sentence, tab, 0 or 1"):
        sst2("test", tmp_path)


def test_every_class_has_its_name(tmp_path):
    rows = "".join(f'"{i}","a","b"\n' for i in (1, 2, 3, 4))
    (tmp_path / "ag_news_train.csv").write_text(rows)
    news = ag_news("train", tmp_path)
    assert news.labels.tolist() == [0, 1, 2, 3]
    assert news.labels.dtype == np.int32
    assert news.classes == ("World", "Sports", "Business", "Sci/Tech")
    (tmp_path / "sst2_train.tsv").write_text("a\t0\nb\t1")
    reviews = sst2("train", tmp_path)
    assert reviews.labels.tolist() == [0, 1]
    assert reviews.classes == ("negative", "positive")


def test_splits_and_folders_are_asked_for(monkeypatch):
    monkeypatch.delenv("JAXSIM_DATA", raising=False)
    with pytest.raises(ValueError, match="split='dev'"):
        ag_news("dev", "x")
    with pytest.raises(ValueError, match="split='all'"):
        sst2("all", "x")
    with pytest.raises(ValueError, match="JAXSIM_DATA"):
        sst2("test")


@pytest.fixture
def folder(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "the", "chess"]
    vocab = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_padding(length=64)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_word_pieces_have_marks_around_them_and_padding_behind(folder):
    found = word_pieces(folder, ["Playing the chess", "the", "go"])
    assert found.ids.tolist() == [[2, 4, 5, 6, 7, 3], [2, 6, 3, 0, 0, 0], [2, 1, 3, 0, 0, 0]]
    assert found.lengths.tolist() == [6, 3, 3]
    assert found.ids.dtype == np.int32


def test_what_is_too_long_is_cut_within_its_marks(folder):
    found = word_pieces(folder, ["the the chess", "the"], longest=4)
    assert found.ids.tolist() == [[2, 6, 6, 3], [2, 6, 3, 0]]


def test_what_is_no_tokenizer_is_refused(folder):
    for content in ("{}", "x", json.dumps({"model": 1})):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            word_pieces(folder, ["a"])
    with pytest.raises(ValueError, match="texts"):
        word_pieces(folder, [])
    with pytest.raises(ValueError, match="longest=1"):
        word_pieces(folder, ["a"], longest=1)
