"""The scraper against two hosts of this test: how many requests each has at a time, and what becomes of failures."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import redis
from kits.command_kit import until
from kits.example_kit import Example, started

PRINTED = r"printf 'https://example.com/\nhttps://example.org/\n' | python crawl.py"


class Host(ThreadingHTTPServer):
    """Answers with the path; ``/flaky`` fails once, ``/gone`` is gone. Counts requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.now = 0
        self.most = 0
        self.asked: Counter[str] = Counter()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host = self.server
        with host.lock:
            host.now += 1
            host.most = max(host.most, host.now)
            host.asked[self.path] += 1
        status = 410 if self.path == "/gone" else 500 if self.path == "/flaky" and host.asked[self.path] == 1 else 200
        threading.Event().wait(0.05)  # a slow page, so that a second request would meet it
        with host.lock:
            host.now -= 1
        self.send_response(status)
        self.send_header("content-length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving() -> Iterator[Host]:
    with Host() as host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield host
        finally:
            host.shutdown()
            thread.join()


def test_a_host_gets_one_request_at_a_time_from_two_workers(redis_url: str, tmp_path: Path) -> None:
    with serving() as first, serving() as second:
        addresses = [f"http://{host.address}/{n}" for n in range(6) for host in (first, second)]
        addresses += [f"http://{first.address}/gone", f"http://{second.address}/flaky"]
        example = Example(
            "scraper",
            tmp_path,
            FLUID_BROKER_URL=redis_url,
            HOSTS=f"{first.address} {second.address}",
            PAUSE_SECONDS="0.05",
        )
        worker = "fluidfast worker scraper:manager --concurrency 20"
        lines = "".join(f"{address}\\n" for address in addresses)
        with example.start(worker) as one, example.start(worker) as two:
            started(one, two)
            example.run(PRINTED, replacing={r"https://example.com/\nhttps://example.org/\n": lines})
            with redis.Redis.from_url(redis_url.partition("?")[0], decode_responses=True) as client:
                pages = f"{{{redis_url.partition('?name=')[2]}}}-pages"
                until(lambda: client.hlen(pages) == len(addresses) - 1, "all pages stored")
                until(lambda: first.asked["/gone"], "the gone page is asked for")
                stored = client.hgetall(pages)
                client.delete(pages)
            for process in (one, two):
                process.signal(signal.SIGTERM)
            assert (one.end(), two.end()) == (0, 0)
        assert stored == {address: address[address.rindex("/") :] for address in addresses if "gone" not in address}
        assert (first.most, second.most) == (1, 1)
        assert first.asked["/gone"] == 1
        assert second.asked["/flaky"] == 2
