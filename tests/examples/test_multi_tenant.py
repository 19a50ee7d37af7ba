from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from kits.example_kit import Example
from kits.servers import RedisServer

SHARED = "fluidfast worker tenants:manager"


def test_tenants_have_queues_of_their_own(start_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    example = Example("multi_tenant", tmp_path, FLUID_BROKER_URL=start_server().url)
    with example.start(SHARED) as shared, example.start(f"TENANT=acme {SHARED}") as acme:
        example.run("python queue_export.py acme invoices")
        example.run("python queue_export.py tiny invoices")
        acme.wait_for("export invoices of acme, medium")
        shared.wait_for("export invoices of tiny, low")
        for worker in (shared, acme):
            worker.signal(signal.SIGTERM)
            assert worker.end() == 0
        assert "tiny" not in acme.stdout
        assert "acme" not in shared.stdout
