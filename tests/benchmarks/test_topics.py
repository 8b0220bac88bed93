import shlex

import pytest

from benchmarks.__main__ import main
from benchmarks.common import record, topics
from benchmarks.common.settings import Settings


class OptionsReadError(Exception):
    """Raised in place of a measurement."""


@pytest.mark.parametrize("name", topics.names())
def test_a_topic_runs_and_its_short_forms_are_options_of_its_own(name, monkeypatch):
    topic, read = topics.load(name), Settings.read.__func__

    def stop(cls, args):
        read(cls, args)
        raise OptionsReadError

    monkeypatch.setattr(Settings, "read", classmethod(stop))
    assert topic.SHORT, "expected one short form at least"
    for line in topic.SHORT:
        with pytest.raises(OptionsReadError):
            topic.main(shlex.split(line))


def test_every_topic_is_found_and_has_a_short_form():
    names = topics.names()
    assert {"chips", "nac", "overhead", "qdcnn", "showcase"} <= set(names)
    assert {line.split()[0] for line in topics.short_lines()} == set(names)


def test_a_record_leaves_out_the_paths_of_this_machine():
    settings = topics.load("exits").ExitsSettings(seeds=2)
    recorded = settings.recorded(extra=1)
    assert recorded["log"] is None
    assert recorded["checkpoints"] is None
    assert (recorded["seeds"], recorded["extra"]) == (2, 1)


def test_an_unknown_topic_is_answered_with_all_names(capsys):
    assert main(["no_such_topic"]) == 2
    assert ", ".join(topics.names()) in capsys.readouterr().err


def test_the_page_of_tables_is_what_the_results_make(tmp_path, monkeypatch):
    written = record.PAGE.read_text()
    monkeypatch.setattr(record, "PAGE", tmp_path / "benchmarks.md")
    assert record.write_tables().read_text() == written
