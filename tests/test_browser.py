"""What the check of built pages notices."""

import pytest

from tests.browser import CHROMIUM, WIDTHS, faults

PAGES = {
    "right.html": '<div style="overflow-x:auto"><p style="width:2000px">A wide table.</p></div>',
    "wide.html": '<p style="width:500px">Too wide for a phone.</p>',
    "cut.html": '<div style="overflow-x:hidden"><p style="width:2000px">No way there.</p></div>',
    "loud.html": "<script>console.error('lost')</script>",
    "broken.html": "<script>nothing.at.all()</script>",
    "lacking.html": '<img src="none.png">',
    "elsewhere.html": '<script src="http://elsewhere.invalid/x.js"></script>',
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    folder = tmp_path_factory.mktemp("site")
    for name, body in PAGES.items():
        head = '<meta name="viewport" content="width=device-width,initial-scale=1">'
        icon = '<link rel="icon" href="data:,">'
        text = f"<!doctype html><head>{head}{icon}</head><body><article>{body}</article></body>"
        (folder / name).write_text(text)
    pictures = tmp_path_factory.mktemp("pictures")
    lines = faults(folder, pictures)
    assert len(list(pictures.glob("*.png"))) == len(PAGES) * len(WIDTHS)
    return {name: [line for line in lines if line.startswith(name)] for name in PAGES}


def test_what_scrolls_on_its_own_is_no_fault(found):
    assert found["right.html"] == []


@pytest.mark.parametrize(
    ("page", "widths", "words"),
    [("wide.html", [390], "Too wide"), ("cut.html", [1280, 390], "No way there")],
)
def test_what_ends_beyond_the_window_is(found, page, widths, words):
    for width in WIDTHS:
        lines = [line for line in found[page] if f"at {width}: " in line]
        assert bool(lines) == (width in widths)
        assert any(words in line for line in lines) == (width in widths)
    assert any("the page is" in line for line in found["wide.html"])


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("loud.html", "lost"),
        ("broken.html", "nothing is not defined"),
        ("lacking.html", "404"),
        ("elsewhere.html", "asks for http://elsewhere.invalid/x.js"),
    ],
)
def test_what_the_console_says_is(found, page, words):
    assert any(words in line for line in found[page])
