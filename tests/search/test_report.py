import json
import re
import subprocess
from html.parser import HTMLParser

import jax
import pytest

import jaxsim as js
from tests.browser import CHROMIUM, faults
from tests.support.networks import X, cnn

pytest.importorskip("plotly", reason="the page draws with plotly, which is not installed")

CHIP = js.accelerators.systolic_45nm()
OPTIONS = {"8": js.quantize(8, 8), "</script><b>": js.quantize(2, 8)}


class Page(HTMLParser):
    """What a page holds and asks for."""

    def __init__(self, text):
        super().__init__()
        self.asked, self.data, self.inside, self.ids = [], "", False, set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.asked += [named[name] for name in ("src", "href") if name in named]
        self.ids.add(named.get("id"))
        self.inside = named.get("id") == "data"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, text):
        self.data += text if self.inside else ""


@pytest.fixture(scope="module")
def front():
    y = cnn()(X)
    evaluate = jax.jit(lambda net: 1 - ((net(X) - y) ** 2).mean())
    return js.explore(cnn(), CHIP, OPTIONS, X, evaluate, points=3, steps=0, quiet=True)


@pytest.fixture(scope="module")
def page(front, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    js.report(front, path, title="A <chip>")
    return path


def test_a_page_holds_all_that_it_needs_and_what_was_found(front, page):
    text = page.read_text()
    found = Page(text)
    assert found.asked == []
    assert "<title>A &lt;chip&gt;</title>" in text
    assert {"front", "energy", "sites", "recipe", "copy"} <= found.ids
    points = json.loads(found.data)["points"]
    assert [p["accuracy"] for p in points] == [p.accuracy for p in front.tried]
    assert sum(p["best"] for p in points) == len(front.points)
    for point, tried in zip(points, front.tried, strict=True):
        assert point["recipe"] == front.recipe(tried)
        assert sum(point["components"].values()) == pytest.approx(tried.energy)
        assert [row[1] for row in point["sites"]] == list(tried.by_place.values())
        assert {row[2] for row in point["sites"]} == {"array"}


def test_a_page_of_networks(tmp_path):
    nets = {"8": js.quantize(8, 8)(cnn()), "4": js.quantize(4, 8)(cnn())}
    accuracy = {"8": 0.9, "4": 0.8}
    js.report(nets, tmp_path / "a.html", accelerator=CHIP, accuracy=accuracy)
    points = json.loads(Page((tmp_path / "a.html").read_text()).data)["points"]
    assert [(p["name"], p["accuracy"]) for p in points] == [("8", 0.9), ("4", 0.8)]
    assert points[0]["cost"] == pytest.approx(js.estimate(nets["8"], CHIP).energy)
    js.report(nets, tmp_path / "b.html", accelerator=CHIP)
    data = json.loads(Page((tmp_path / "b.html").read_text()).data)
    assert data["accuracy"] == "time, s"
    assert "accuracy" not in data["points"][0]["facts"]


def test_bad_reports_are_refused(front, tmp_path):
    nets, path = {"8": js.quantize(8, 8)(cnn())}, tmp_path / "page.html"
    with pytest.raises(ValueError, match=r"found=\{\}: must be a front, or a dict"):
        js.report({}, path, accelerator=CHIP)
    with pytest.raises(ValueError, match="accelerator=None: give the hardware"):
        js.report(nets, path)
    with pytest.raises(ValueError, match=r"accuracy: is of \['4'\]; expected \['8'\]"):
        js.report(nets, path, accelerator=CHIP, accuracy={"4": 1.0})
    with pytest.raises(ValueError, match="a front has its own"):
        js.report(front, path, accelerator=CHIP)
    assert not path.exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_recipe_of_the_point_that_is_asked_for(front, page):
    """A number behind # chooses a point, as a click does; nothing is said on the console."""
    for i in range(len(front.tried)):
        ran = subprocess.run(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"),
                f"file://{page}#{i}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "CONSOLE" not in ran.stderr, ran.stderr
        shown = re.search(r'<pre id="recipe">(.*?)</pre>', ran.stdout, re.DOTALL)[1]
        assert shown == front.recipe(front.tried[i]).replace("<", "&lt;").replace(">", "&gt;")
        assert ran.stdout.count("<tr") == 1 + len(cnn().sites)
        assert 'class="main-svg"' in ran.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_a_desk_and_a_phone(page):
    assert faults(page.parent) == []
