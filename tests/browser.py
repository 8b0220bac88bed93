"""`python -m tests.browser site`: every built page in Chromium, as wide as a desk and as a phone.

A page must not be wider than the window (what is wide scrolls on its own), must cut nothing off,
must say nothing on the console, and must read nothing from elsewhere. `--pictures FOLDER` keeps a
screenshot of each, to be looked at. `make docs` runs it, where there is a Chromium.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import functools
import http.server
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Generator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (1280, 390)
PATIENCE = 300.0
"""Seconds until what does not answer has failed: machines may be busy."""

# What ends beyond the right edge of the window, in nothing that scrolls. Beside the article there
# are Material's drawers, which wait outside on purpose.
CUT = """
(width => {
  const found = [];
  const whole = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth);
  if (whole > width) found.push(`the page is ${whole} pixels wide`);
  const article = document.querySelector("article") || document.body;
  for (const node of article.querySelectorAll("*")) {
    const box = node.getBoundingClientRect();
    if (box.width === 0 || box.right <= width + 1) continue;
    let up = node.parentElement;
    while (up !== document.body && !/auto|scroll/.test(getComputedStyle(up).overflowX)) {
      up = up.parentElement;
    }
    if (up !== document.body) continue;
    const text = node.textContent.trim().slice(0, 40);
    found.push(`<${node.localName}> ends at ${Math.round(box.right)}: ${text}`);
    if (found.length > 4) break;
  }
  return found;
})(%d)
"""


class Browser:
    """Chromium behind a pipe, which speaks its protocol of debugging.

    Attributes:
      said: errors and warnings of the console since the last `open`, and addresses elsewhere
        that the page has asked for.
    """

    def __init__(self, chromium: str):
        """Starts it.

        Args:
          chromium: Path of the program.
        """
        self.said: list[str] = []
        self._folder = tempfile.mkdtemp()
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Chromium reads 3 and writes 4, whatever those are here.
        given = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in (theirs_in, theirs_out)]
        arguments = [
            *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--remote-debugging-pipe", f"--user-data-dir={self._folder}", "--no-first-run"),
            "about:blank",
        ]
        null = os.open(os.devnull, os.O_RDWR)
        self._process = os.posix_spawn(
            chromium,
            arguments,
            os.environ,
            file_actions=[
                *(
                    (os.POSIX_SPAWN_DUP2, fd, place)
                    for fd, place in zip(given, (3, 4), strict=True)
                ),
                *((os.POSIX_SPAWN_DUP2, null, place) for place in (1, 2)),
            ],
            setsid=True,
        )
        for fd in (theirs_in, theirs_out, *given, null):
            os.close(fd)
        self._in, self._out, self._rest, self._last = ours_in, ours_out, b"", 0
        self._session: str | None = None
        self._loaded, self._home = False, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """Ends it, with the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol, and takes note of what happens meanwhile.

        Args:
          method: Name, as `Page.navigate`.
          **params: Its parameters.
        """
        self._last += 1
        number = self._last
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._next(PATIENCE)
            if answer is None:
                raise TimeoutError(f"{method}: no answer")
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, address: str) -> None:
        """Opens a page and waits until it is quiet.

        Args:
          address: Of the page.
        """
        self.said, self._loaded, self._home = [], False, address
        self.call("Page.navigate", url=address)
        ends = time.monotonic() + PATIENCE
        while not self._loaded:
            if self._next(1) is None and time.monotonic() > ends:
                raise TimeoutError(f"{address}: has not loaded")
        self._wait()

    def resize(self, width: int) -> None:
        """Makes the window, of 844 pixels height, as wide as that of a desk or a phone.

        Args:
          width: In pixels; below 600 it is a phone's.
        """
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self._wait()

    def _wait(self) -> None:
        """Until a fifth of a second brings no message: scripts run once all is there."""
        while self._next(0.2) is not None:
            pass

    def evaluate(self, expression: str) -> Any:
        """Evaluates JavaScript in the page.

        Args:
          expression: What is evaluated; its value comes back as JSON.
        """
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Writes a screenshot, of the whole page or of what the window shows.

        Args:
          path: Of the PNG.
          whole: Whether what is below the window is on it, too, up to 8000 pixels.
        """
        clip = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {
                "captureBeyondViewport": True,
                "clip": {
                    **{"x": 0, "y": 0, "scale": 1, "width": size["width"]},
                    "height": min(size["height"], 8000),
                },
            }
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """The next message, after taking note of it; None where none comes in time."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], seconds)
            if not ready:
                return None
            more = os.read(self._in, 1 << 16)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            texts = [str(a.get("value", a.get("description"))) for a in params["args"]]
            self.said.append(" ".join(texts))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.said.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Network.requestWillBeSent":
            asked = urllib.parse.urlsplit(params["request"]["url"])
            if asked.netloc not in ("", urllib.parse.urlsplit(self._home).netloc):
                self.said.append(f"asks for {asked.geturl()}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.said.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@contextlib.contextmanager
def browser() -> Generator[Browser]:
    """A browser that ends with the block."""
    assert CHROMIUM is not None
    it = Browser(CHROMIUM)
    try:
        yield it
    finally:
        it.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # a browser asks for it on its own
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Generator[str]:
    """Serves a folder on this machine, and yields its address.

    Args:
      folder: What is served.
    """
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def faults(site: Path, pictures: Path | None = None, only: str = "") -> list[str]:
    """Opens each page in each width, and lists what is wrong.

    Args:
      site: Folder that mkdocs has built, or any of HTML.
      pictures: Folder of screenshots; None for none.
      only: What the path of a page must have in it.
    """
    found = list[str]()
    pages = [p.relative_to(site).as_posix() for p in sorted(site.rglob("*.html"))]
    with served(site) as address, browser() as window:
        for page in (p for p in pages if only in p):
            name = page.removesuffix(".html").removesuffix("/index").replace("/", "-")
            window.resize(WIDTHS[0])
            window.open(address + page.removesuffix("index.html"))
            for width in WIDTHS:
                window.resize(width)
                found += [f"{page} at {width}: {cut}" for cut in window.evaluate(CUT % width)]
                if pictures is not None:
                    window.picture(pictures / f"{name}-{width}.png")
            found += [f"{page}: {said}" for said in window.said]
    return found


def main() -> int:
    """Prints what is wrong with pages; 1 where something is."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__)
    parser.add_argument("site", type=Path, help="folder of built pages")
    parser.add_argument("--pictures", type=Path, help="folder that screenshots go to")
    parser.add_argument("--only", default="", help="open pages with this in their path alone")
    given = parser.parse_args()
    if CHROMIUM is None:
        print("no Chromium on this machine: pages were not opened")
        return 0
    if given.pictures is not None:
        given.pictures.mkdir(parents=True, exist_ok=True)
    found = faults(given.site, given.pictures, given.only)
    for line in found:
        print(line, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
