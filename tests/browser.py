"""Browsers for tests of our HTML pages: Chromium where the machine has one, and V8 with a document of our own."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol

from py_mini_racer import MiniRacer

HERE = Path(__file__).parent
ACTS = (HERE / "acts.js").read_text()
VOID = {"meta", "br", "line", "rect", "img", "path", "circle", "input"}
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser(Protocol):
    """A page that is open, its script run."""

    def run(self, code: str) -> Any:
        """Value of a JavaScript expression, by way of JSON; `tests/acts.js` is there for it."""
        ...


def chromium() -> str | None:
    """Path of this machine's Chromium or Chrome; None if it has none."""
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


@contextmanager
def opened(html: str, path: str | None) -> Iterator[Browser]:
    """Open a page in the Chromium at `path`, or without one in V8."""
    if path is None:
        yield V8(html)
        return
    with Chromium(path) as browser:
        browser.open(html)
        yield browser


class Tree(HTMLParser):
    """A page's markup as {tag, attributes, children}; an element that is not closed is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.root: dict[str, Any] = {"tag": "#document", "attributes": {}, "children": []}
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = {"tag": tag, "attributes": {k: v or "" for k, v in attrs}, "children": []}
        self.open[-1]["children"].append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1]["children"].append(
            {"tag": tag, "attributes": {k: v or "" for k, v in attrs}, "children": []}
        )

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag, tag

    def handle_data(self, data: str) -> None:
        self.open[-1]["children"].append(data)


def parse(html: str) -> dict[str, Any]:
    """Tree of a page."""
    tree = Tree()
    tree.feed(html)
    tree.close()
    assert tree.open == [tree.root]
    return tree.root


class V8:
    """See `Browser`: the script in Chromium's engine alone, on a document that dom.js makes of the page."""

    def __init__(self, html: str) -> None:
        script = re.search(r"<script>\n(.*)\n</script>", html, re.DOTALL)
        assert script is not None
        self.engine = MiniRacer()
        dom = (HERE / "dom.js").read_text()
        self.engine.eval(f"const markup = {json.dumps(parse(html))};\n{dom}\n{script[1]}\n{ACTS}")

    def run(self, code: str) -> Any:
        """See `Browser.run`."""
        return json.loads(str(self.engine.eval(f"JSON.stringify({code}) ?? 'null'")))


class Chromium:
    """See `Browser`: a headless Chromium, told what to do over a pipe in the DevTools protocol. A context manager.

    Args:
        path: of the program.
    """

    def __init__(self, path: str) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions "
            f"--hide-scrollbars --remote-debugging-pipe --user-data-dir={self._folder.name}/profile about:blank"
        )
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # It reads from descriptor 3 and writes to 4; copies, lest one of the pipes is 3 or 4 already.
        high_in, high_out = (fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (theirs_in, theirs_out))
        self._pid = os.posix_spawn(
            path,
            [path, *flags.split()],
            os.environ,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, one, os.devnull, os.O_RDWR, 0) for one in (0, 1, 2)),
                (os.POSIX_SPAWN_DUP2, high_in, 3),
                (os.POSIX_SPAWN_DUP2, high_out, 4),
            ],
        )
        for one in (theirs_in, theirs_out, high_in, high_out):
            os.close(one)
        self._out, self._in = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb", 0)
        self._buffer, self._number, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, html: str) -> None:
        """Open a page and wait until it is loaded."""
        page = Path(self._folder.name) / "page.html"
        page.write_text(html, encoding="utf-8")
        self.call("Page.enable")
        self.call("Page.navigate", url=page.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass
        self.call("Runtime.evaluate", expression=ACTS)

    def run(self, code: str) -> Any:
        """See `Browser.run`."""
        answer = self.call("Runtime.evaluate", expression=f"JSON.stringify({code}) ?? 'null'")
        assert "exceptionDetails" not in answer, answer
        return json.loads(answer["result"]["value"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = self._in.read(1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def __enter__(self) -> Chromium:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the browser."""
        self._out.close()  # it ends when nobody is left to tell it what to do
        self._in.close()
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)
        self._folder.cleanup()


def require_harmless(html: str) -> None:
    """Fail if a page into which somebody wrote `<script>alert(…)` or the like runs it, as text or as an attribute."""
    assert "<script>alert" not in html
    assert html.count("<script>") == 1

    def attributes(node: Any) -> set[str]:
        if isinstance(node, str):
            return set()
        return set(node["attributes"]) | {name for child in node["children"] for name in attributes(child)}

    assert not [name for name in attributes(parse(html)) if name.startswith("on") or "alert" in name]
