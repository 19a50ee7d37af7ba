"""Webhooks to a receiver of this test: retries keep their id, and the run that gave up is delivered after a requeue."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kits.command_kit import until
from kits.example_kit import Example

QUEUE = (
    "fluidfast queue webhooks:manager deliver --params "
    """'{"url": "http://localhost:9000/hook", "event": {"paid": 7}}'"""
)


class Receiver(BaseHTTPRequestHandler):
    got: list[tuple[str, str, bytes]]
    failures: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.got.append((self.headers["webhook-id"], self.headers["webhook-signature"], body))
        self.send_response(500 if len(self.got) <= self.failures else 204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_retries_dead_letter_and_requeue(redis_url: str, tmp_path: Path) -> None:
    # the first attempt and its eight retries fail; what the dead letter is requeued to does not
    receiver = type("Here", (Receiver,), {"got": [], "failures": 9})
    example = Example("webhooks", tmp_path, FLUID_BROKER_URL=redis_url, FIRST_WAIT="0.0001", WEBHOOK_SECRET="s")
    with ThreadingHTTPServer(("127.0.0.1", 0), receiver) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with example.start("fluidfast worker webhooks:manager --concurrency 100") as worker:
                example.run(QUEUE, replacing={"localhost:9000": f"127.0.0.1:{server.server_port}"})
                until(lambda: len(receiver.got) == 9, "the last retry")
                list_dead = "fluidfast dead webhooks:manager list"
                until(lambda: "HTTPStatusError" in example.run(list_dead), "a dead letter")
                example.run("fluidfast dead webhooks:manager requeue --task deliver --rate 100")
                until(lambda: len(receiver.got) == 10, "the requeued one")
                worker.signal(signal.SIGTERM)
                assert worker.end() == 0
        finally:
            server.shutdown()
            thread.join()
    [(_, signature, body)] = set(receiver.got)  # one id, one signature, one body
    assert json.loads(body) == {"paid": 7}
    assert signature == hmac.new(b"s", body, hashlib.sha256).hexdigest()
