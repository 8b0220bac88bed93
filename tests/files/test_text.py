"""Names come back as they were written, and what no reader can read is named with its line."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim import cascades as jc
from jaxsim.cascades.labeled import load_edgelist
from jaxsim.cascades.sample import load_cascades
from jaxsim.cli.recipe import read_recipe
from jaxsim.data.text import ag_news, sst2
from jaxsim.files.text import read_lines, read_text
from jaxsim.models.hugging_face import load_bert


def edges(found):
    """Edges by the names of their ends, as text."""
    graph, labels = found
    ends = zip(np.asarray(graph.src).tolist(), np.asarray(graph.dst).tolist(), strict=True)
    return {(str(labels[u]), str(labels[v])) for u, v in ends}


def named(name, read):
    return lambda path: read(path.rename(path.with_name(name)).parent)


READERS = {
    "edges": ("1 2\n", load_edgelist),
    "cascades": ("ä,0 ö,1\n", lambda path: load_cascades(path, width=1.0)),
    "AG News": ('"1","ä","ö"\n', named("ag_news_test.csv", lambda p: ag_news("test", p))),
    "SST-2": ("ä\t1\n", named("sst2_dev.tsv", lambda p: sst2("dev", p))),
    "configuration": ('{"ä": 1}', named("config.json", lambda p: load_bert(p, classes=2, key=0))),
    "text": ("ä", read_text),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("coded", "told"),
    [
        (lambda t: gzip.compress(t.encode()), "gzip"),
        (lambda t: bz2.compress(t.encode()), "bzip2"),
        (lambda t: lzma.compress(t.encode()), "xz"),
        (lambda t: t.encode("utf-16"), "UTF-16"),
        (lambda t: t.encode("utf-16-be"), "zero byte"),
        (lambda t: t.encode("utf-32"), "UTF-16 or UTF-32"),
        (lambda t: b"\n\n" + (t + "ü").encode("latin-1"), "line [34]: byte 0x.. is not UTF-8"),
    ],
)
def test_another_encoding_is_named_with_the_file(tmp_path, reader, coded, told):
    text, read = READERS[reader]
    path = tmp_path / "names"
    path.write_bytes(coded(text))
    with pytest.raises(ValueError, match=rf"(names|ag_news|sst2|config).*{told}"):
        read(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_marks_and_ends_of_lines_are_no_text(tmp_path, mark, end):
    path = tmp_path / "t"
    path.write_bytes(mark + end.join([b"1,0 2,1", b"1,0", b"# 2,0 1,1", b"% 3,1", b""]))
    cascades, names = load_cascades(path, width=1.0)
    assert names.tolist() == ["1", "2"]
    assert cascades.t == 2
    assert read_lines(path) == [(1, "1,0 2,1"), (2, "1,0")]
    path.write_bytes(mark + end.join([b"# 1 3", b"1 2", b"", b"2\t3", b"3, 1"]))
    assert edges(load_edgelist(path)) == {("1", "2"), ("2", "3"), ("3", "1")}
    path.write_bytes(mark + end.join([b'"1","a","b"', b'"2","c","d"']))
    assert len(named("ag_news_test.csv", lambda p: ag_news("test", p))(path).texts) == 2


def test_lines_that_say_something_keep_their_numbers(tmp_path):
    path = tmp_path / "t"
    path.write_text("# a\n\n a # b \n\t% c\n \nb\n")
    assert read_lines(path) == [(3, "a # b"), (6, "b")]
    assert read_lines(path, skip=2) == [(3, "a # b"), (6, "b")]
    assert read_lines(path, skip=3) == [(6, "b")]
    assert read_lines(path, skip=9) == []


@pytest.mark.parametrize(
    "names",
    [
        ("9007199254740992", "9007199254740993"),  # one float64
        ("18446744073709551616", "18446744073709551617"),
        ("9223372036854775808", "-1"),
        ("7", "07"),
        ("7", "+7"),
        ("-7", "7"),
        ("1" * 400, "2" * 400),
        ("1" * 5000, "2" * 5000),
        ("anna", "bob"),
        ("inf", "nan"),
        ("1e5", "inf"),
        ("10.0.0.1", "10.0.0.2"),
        ("0x10", "deadbeef"),
        ("Ä", "ä"),
    ],
)
def test_names_of_nodes_are_as_written(tmp_path, names):
    path = tmp_path / "edges"
    path.write_text(f"{names[0]} {names[1]}\n", encoding="utf-8")
    assert edges(load_edgelist(path)) == {names}
    path.write_text(f"{names[0]},0 {names[1]},1\n", encoding="utf-8")
    assert load_cascades(path, width=1.0).labels.tolist() == list(names)


NAME = st.integers(-(10**30), 10**30).map(str)


@given(st.lists(st.tuples(NAME, NAME), min_size=1, max_size=8).filter(lambda e: e[0][0] != e[0][1]))
def test_numbers_of_any_length_come_back_in_their_order(pairs):
    import tempfile

    with tempfile.NamedTemporaryFile("w") as file:
        file.write("".join(f"{u} {v}\n" for u, v in pairs))
        file.flush()
        found = load_edgelist(file.name)
    assert edges(found) == {(u, v) for u, v in pairs if u != v}
    numbers = [int(name) for name in found.labels]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["# a", "1 2", "", "2 3", "3"], "line 5"),
        (["# a", "1 2", "", "2 3", "3 x"], "line 5: node 'x' is no whole number"),
        (["from to", "1 2"], "line 1: node 'from'.*skip_lines"),
        (["1 2", "1 inf"], "line 2: node 'inf'"),
        (["1 2", "2 nan"], "line 2: node 'nan'"),
        (["1 2.5"], "line 1: node '2.5'"),
        (["1 2", "1e3 2"], "line 2: node '1e3'"),
        (["1.5 2.5"], "line 1: node '1.5'"),
        (["1 2", ",2"], "line 2: ',2'"),
        (["1 2", "1,,2"], "line 2: '1,,2'"),
        (["1 ٣"], "line 1: node '٣'"),
    ],
)
def test_a_bad_line_is_counted_in_the_file(tmp_path, lines, told):
    path = tmp_path / "edges.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"edges\.txt.*{told}"):
        load_edgelist(path)
    path.write_text("\n".join(["skipped", *lines]), encoding="utf-8")
    more = str(int(told.split()[1].strip(":")) + 1)
    with pytest.raises(ValueError, match=f"line {more}"):
        load_edgelist(path, skip_lines=1)


@pytest.mark.parametrize("p", ["1.5", "-0.1", "nan", "inf", "half", "1e-400x", ""])
def test_a_probability_out_of_range_is_counted_in_the_file(tmp_path, p):
    path = tmp_path / "edges"
    path.write_text(f"# p\n1 2 0.5\n\n2 1 {p}\n")
    with pytest.raises(ValueError, match="line 4"):
        load_edgelist(path, probabilities=True)


@pytest.mark.parametrize("pair", ["1,0,9", ",0", "1,", "1,soon", "1,nan", "1,inf", ",", "1,0,"])
def test_a_bad_pair_is_counted_in_the_file(tmp_path, pair):
    path = tmp_path / "cascades"
    path.write_text(f"# a\n1,0 2,1\n\nname 1,0 {pair}\n")
    with pytest.raises(ValueError, match=r"cascades, line 4: .*node,time"):
        load_cascades(path, width=1.0)


def test_rows_are_counted_by_the_lines_of_the_file(tmp_path):
    path = tmp_path / "ag_news_test.csv"
    path.write_text('"1","a\nb","c\nd"\n"5","a","b"\n')
    with pytest.raises(ValueError, match=r"ag_news_test\.csv', line 4: row 2 is no"):
        ag_news("test", tmp_path)


def test_integers_stay_integers(tmp_path):
    path = tmp_path / "edges"
    path.write_text("30 10\n10 20\n")
    assert jc.load_edgelist(path).labels.tolist() == [10, 20, 30]
    (tmp_path / "r.toml").write_bytes(gzip.compress(b"[model]"))
    with pytest.raises(ValueError, match=r"r\.toml.*gzip"):
        read_recipe(tmp_path / "r.toml")
