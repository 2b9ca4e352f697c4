"""Official downloads against a server on this machine that cuts, stalls, lies and refuses."""

import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from src.datasets import download as downloading
from src.datasets.download import Download
from src.datasets.examples import DataError

WHOLE = bytes(range(256)) * 40
ADVICE = "take the mirror"


class Server:
    """Gives WHOLE at /set.mat as `plan` says, one function for each request, the last for all further ones."""

    def __init__(self):
        self.asked: list[dict[str, str]] = []
        self.plan: list[Callable] = [give]
        self.stop = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(dict(self.headers))
                outer.plan[min(len(outer.asked), len(outer.plan)) - 1](self, outer)

            def log_message(self, *_):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.httpd.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.httpd.server_port}/set.mat"


def start_of(handler) -> int:
    return int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def give(handler, server, data=WHOLE, told=None, sent=None):
    """What is asked for. told: the length that is stated. sent: how many bytes of it really come."""
    start = start_of(handler)
    if start >= len(data):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(data)}")
        handler.end_headers()
        return
    rest = data[start:]
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(len(rest) if told is None else told))
    handler.end_headers()
    handler.wfile.write(rest[:sent])


def cut(handler, server):
    give(handler, server, sent=3000)


def stall(handler, server):
    give(handler, server, sent=3000)
    handler.wfile.flush()
    server.stop.wait(5)


def without_ranges(handler, server):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(WHOLE)))
    handler.end_headers()
    handler.wfile.write(WHOLE)


def refuse(status, **headers):
    def answer(handler, server):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(downloading, "WAITS", (0, 0, 0))
    monkeypatch.setattr(downloading, "TIMEOUT", 0.5)
    yield server
    server.stop.set()
    server.httpd.shutdown()
    server.httpd.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    def fetch(md5=hashlib.md5(WHOLE).hexdigest()):
        Download(server.url, md5, "set").fetch(tmp_path, ADVICE)
        return (tmp_path / "set/set.mat").read_bytes()

    return fetch


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "set").iterdir())


def test_a_server_sees_an_agent_that_is_not_pythons_own(server, fetch, tmp_path):
    assert fetch() == WHOLE and left(tmp_path) == ["set.mat"]
    assert "Python" not in server.asked[0]["User-Agent"] and "Range" not in server.asked[0]
    fetch()
    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", [cut, stall, refuse(429, Retry_After="0"), refuse(503)])
def test_a_fault_that_passes_is_tried_again_and_goes_on(server, fetch, tmp_path, fault):
    server.plan = [fault, give]
    assert fetch() == WHOLE and left(tmp_path) == ["set.mat"]
    assert server.asked[1].get("Range") == ("bytes=3000-" if fault in (cut, stall) else None)


def test_what_came_is_kept_for_the_same_command(server, fetch, tmp_path):
    server.plan = [cut, *[refuse(503)] * 9]
    with pytest.raises(DataError, match="too busy, and stayed so .503."):
        fetch()
    assert left(tmp_path) == ["set.mat.part"]
    server.plan, server.asked = [give], []
    assert fetch() == WHOLE and server.asked[0]["Range"] == "bytes=3000-"


def test_a_file_that_is_always_cut_short_is_not_called_another_file(server, fetch, tmp_path):
    def always_cut(handler, server):
        give(handler, server, sent=10)

    server.plan = [always_cut]
    with pytest.raises(DataError) as told:
        fetch()
    assert f"cut short: 40 of {len(WHOLE)} bytes came" in str(told.value) and "md5" not in str(told.value)
    assert "goes on after the 40 bytes" in str(told.value) and ADVICE in str(told.value)
    assert left(tmp_path) == ["set.mat.part"]


@pytest.mark.parametrize("told", [100, None])
def test_another_file_is_set_aside_and_the_next_try_starts_at_its_beginning(server, fetch, tmp_path, told):
    """Also where a server states too small a length."""
    wrong = WHOLE if told else b"a page that says that the quota is used up"
    server.plan = [lambda handler, server: give(handler, server, data=wrong, told=told)]
    with pytest.raises(
        DataError, match="expected md5 .*, found .*: the server gave a whole file, and another one; set"
    ):
        fetch()
    assert left(tmp_path) == ["set.mat.bad"]
    server.plan, server.asked = [give], []
    assert fetch() == WHOLE and "Range" not in server.asked[0]


@pytest.mark.parametrize(
    ("status", "told"), [(403, "refuses to give it"), (404, "no longer has it"), (410, "no longer")]
)
def test_a_refusal_is_told_at_once(server, fetch, status, told):
    server.plan = [refuse(status)]
    with pytest.raises(DataError, match=f"{told}.*{status}(?s:.)*{ADVICE}"):
        fetch()
    assert len(server.asked) == 1


def test_a_server_without_ranges_gives_all_of_it_again(server, fetch):
    server.plan = [cut, without_ranges]
    assert fetch() == WHOLE


@pytest.mark.parametrize("part", [WHOLE, WHOLE + b"more"])
def test_a_part_that_is_whole_or_too_long(server, fetch, tmp_path, part):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.mat.part").write_bytes(part)
    assert fetch() == WHOLE


def test_a_full_disk_is_told_before_it_is_full(server, fetch, tmp_path, monkeypatch):
    import shutil

    free = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(DataError, match="expected room for .* GB that are still to come, found 0.0 GB"):
        fetch()
