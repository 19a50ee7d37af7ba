"""Real processes under one broker, and how to maltreat them.

    def test_something(fleet, oracle, fault_seed, figures):
        # fleet: a server of the test's own (fleet.server), a broker name, no process yet
        workers = fleet.workers(3, config={"max_concurrent_tasks": 10})      # started, and ready
        producer = fleet.producer(count=10_000, ms=2)
        workers[0].kill()                                                     # SIGKILL; .pause() .resume() .terminate()
        fleet.workers(1)
        producer.done(20)                                                     # exit code 0 within 20 s
        fleet.drain(30)                      # nothing is queued, leased, delayed, suspect or in an inbox any more
        fleet.stop()                         # SIGTERM to the rest; every exit code is 0, or the test fails
        verdict = fleet.verdict().check(seed=fault_seed, killed=fleet.killed, stopped=fleet.stopped)
        fleet.assert_clean()                 # no key that never expires is left
        figures.add(1, "kill -9", **verdict.counts(), kills=1)

Tasks of a row of your own: ``fleet.workers(2, app=".../tests/faults/apps/mine.py")``; see ``worker_app.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import redis
from kits.servers import RedisServer, leaked_keys

import fluidfast
from fluidfast.commands.trials.ledger import Oracle, Verdict
from fluidfast.wire.peek import read_fields

APP = Path(__file__).with_name("worker_app.py")
ALLOWED_KEYS = ("*-tasks-*", "*-ff:failed")
"""What may stay for ever: aio-fluid's table of tasks."""
UNSURE = ("*-ff:consumers", "*-ff:consumer-leases")
"""What a consumer may leave behind that lost a connection shortly before it left: something may yet be moved to its
inbox, so it stays known until the sweep of another consumer looks there."""


class Process:
    """A worker or a producer. ``who`` is its name in the oracle."""

    _ready = False

    def __init__(self, fleet: Fleet, who: str, options: dict[str, Any], env: dict[str, str]) -> None:
        self.fleet = fleet
        self.who = who
        self.options = options
        self._ready = False
        self.log_path = fleet.oracle.directory / f"{who}.log"
        paths = [str(Path(fluidfast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "FAULT": json.dumps(options), **env}
        with self.log_path.open("ab") as log:
            # a SIGTERM that comes before the process listens waits until it does
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            try:
                self.popen = subprocess.Popen(
                    [sys.executable, str(APP)], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def id(self) -> str:
        """A worker's consumer id."""
        for line in self.fleet.oracle.notes(self.who):
            if line.id.startswith("ready "):
                return line.id.removeprefix("ready ")
        raise AssertionError(f"{self.who} is not ready")

    def is_ready(self) -> bool:
        alive = self.alive  # asked first: what it said before its end counts, such as that of a poison
        if not self._ready:  # its ledger may be long by the time that it is asked again
            self._ready = any(line.id.startswith("ready ") for line in self.fleet.oracle.notes(self.who))
        if not self._ready and not alive:
            raise AssertionError(f"{self.who} ended with {self.popen.returncode}:\n{self.log[-3000:]}")
        return self._ready

    def kill(self) -> None:
        """SIGKILL, and wait for the end. The oracle is told: what it had may run again."""
        self.fleet.killed.add(self.who)
        self.popen.kill()
        self.popen.wait()
        self._close()

    def pause(self) -> None:
        """SIGSTOP. The oracle is told: what it had runs again elsewhere."""
        self.fleet.stopped.add(self.who)
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM."""
        self.popen.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 20) -> int:
        """The exit code."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.who} has not ended within {seconds} s:\n{self.log[-3000:]}") from None
        self._close()
        return code

    def done(self, seconds: float = 20) -> None:
        """It ends by itself, with exit code 0."""
        code = self.wait(seconds)
        assert code == 0, f"{self.who} ended with {code}:\n{self.log[-3000:]}"

    def _close(self) -> None:
        if self.popen.stdin is not None:
            self.popen.stdin.close()

    def end(self) -> None:
        """Whatever it takes."""
        if self.alive:
            self.popen.kill()  # a stopped process dies of it too
            self.popen.wait()
        self._close()


class Fleet:
    """The processes of one scenario, the broker that they share, and the oracle.

    ``url``: the broker's; give one to go through a proxy (``fleet.workers(1, url=proxy.url_of(fleet.url))``).
    ``name``: of the broker, for looking at its keys on ``server``.
    """

    def __init__(
        self, server: RedisServer, oracle: Oracle, *, name: str, lease_seconds: float = 1.0, query: str = ""
    ) -> None:
        self.server = server
        self.oracle = oracle
        self.name = name
        self.query = query
        self.set_lease(lease_seconds)
        self.prefix = "{" + name + "}"
        self.processes: list[Process] = []
        self.killed: set[str] = set()
        self.stopped: set[str] = set()
        self._client = redis.Redis.from_url(server.url, socket_timeout=5)
        self._numbers: dict[str, int] = {}

    def set_lease(self, seconds: float) -> None:
        """For processes that are started from now on."""
        self.lease_seconds = seconds
        self.url = f"{self.server.url}?name={self.name}&lease_seconds={seconds}{self.query}"

    def look_at(self, server: RedisServer) -> None:
        """The broker's keys are on this server from now on."""
        self.server = server
        self._client.close()
        self._client = redis.Redis.from_url(server.url, socket_timeout=5)

    # -- processes

    def _start(self, role: str, options: dict[str, Any], env: dict[str, str] | None) -> Process:
        number = self._numbers[role] = self._numbers.get(role, 0) + 1
        who = options.pop("who", f"{role}{number}")
        options = {"role": role, "url": self.url, "ledgers": str(self.oracle.directory), "who": who, **options}
        process = Process(self, who, options, env or {})
        self.processes.append(process)
        return process

    def workers(
        self, count: int = 1, *, ready: float = 30, env: dict[str, str] | None = None, **options: Any
    ) -> list[Process]:
        """Start workers; with ``ready`` seconds (0: do not wait) to be ready. Options: ``worker_app.py``."""
        started = [self._start("worker", dict(options), env) for _ in range(count)]
        if ready:
            until(lambda: all(process.is_ready() for process in started), ready, "workers are ready")
        return started

    def producer(self, count: int, *, env: dict[str, str] | None = None, **options: Any) -> Process:
        """Start a producer of ``count`` runs. Options: ``worker_app.py``."""
        return self._start("producer", {"count": count, **options}, env)

    def living(self, role: str = "worker") -> list[Process]:
        return [process for process in self.processes if process.alive and process.options["role"] == role]

    def exits(self) -> list[str]:
        """Processes that ended although nobody killed or stopped them, or with an error."""
        return [
            f"{process.who}: {process.popen.returncode}"
            for process in self.processes
            if not process.alive and process.who not in self.killed and process.popen.returncode != 0
        ]

    def stop(self, seconds: float = 20) -> None:
        """SIGTERM to whoever lives; all end with 0."""
        living = [process for process in self.processes if process.alive]
        for process in living:
            process.terminate()
        codes = {process.who: process.wait(seconds) for process in living}
        bad = {who: code for who, code in codes.items() if code}
        assert not bad, f"exit codes {bad}:\n" + "\n".join(p.log[-2000:] for p in living if p.who in bad)
        assert not self.exits(), f"ended by themselves: {self.exits()}"

    def close(self) -> None:
        """End everything. The fixture calls it."""
        for process in self.processes:
            process.end()
        self._client.close()

    # -- the broker

    def call(self, *command: Any) -> Any:
        """A command to the server."""
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def places(self) -> dict[str, int]:
        """How many runs are where (queues, suspect, inboxes, delayed, dead; batches under lease), without the zeros."""
        prefix = self.prefix
        pipe = self._client.pipeline(transaction=True)
        for word in ("high", "medium", "low"):
            pipe.llen(f"{prefix}-queue-{word}")
        pipe.llen(f"{prefix}-ff:suspect")
        pipe.zcard(f"{prefix}-ff:delayed")
        pipe.zcard(f"{prefix}-ff:leases")
        pipe.llen(f"{prefix}-ff:dead")
        names = ("high", "medium", "low", "suspect", "delayed", "leases", "dead")
        found = dict(zip(names, pipe.execute(), strict=True))
        inboxes = list(self._client.scan_iter(f"{prefix}-ff:inbox:*", count=1000))
        found["inbox"] = sum(self._client.llen(key) for key in inboxes)  # type: ignore[misc]
        return {place: n for place, n in found.items() if n}

    def drain(self, seconds: float = 30, *, consumers: bool = True) -> float:
        """Wait until nothing is left but dead letters; gives the seconds that it took.

        ``consumers``: also until the table of consumers holds nobody but the living, whom ``stop`` makes leave.
        """
        began = time.monotonic()

        def empty() -> bool:
            try:
                if self.places().keys() - {"dead"}:
                    return False
                known = self._client.zcard(f"{self.prefix}-ff:consumers")
            except redis.exceptions.ConnectionError:
                return False
            return not consumers or known <= len(self.living())  # type: ignore[operator]

        def why() -> str:
            logs = "\n".join(f"--- {p.who}\n{p.log[-800:]}" for p in self.processes[-6:])
            return f"drained; left: {self.places()}, ended: {self.exits()}\n{logs}"

        until(empty, seconds, why, every=0.05)
        return time.monotonic() - began

    def dead_ids(self) -> list[str]:
        """Run ids of the dead letters, as far as they can be read."""
        entries: Any = self._client.lrange(f"{self.prefix}-ff:dead", 0, -1)
        return [str(read_fields(entry.partition(b"\n")[2]).get("id", "")) for entry in entries]

    def verdict(self) -> Verdict:
        return self.oracle.verdict(self.dead_ids())

    def assert_clean(self, *allowed: str) -> None:
        """No key of the broker stays for ever."""
        leaked = leaked_keys(self._client, self.name, (*ALLOWED_KEYS, *allowed))
        assert not leaked, f"keys that never expire: {leaked}"


def until(
    condition: Callable[[], Any], seconds: float, what: str | Callable[[], str] = "", *, every: float = 0.02
) -> Any:
    """Look at a condition until it is true; gives what it gave. AssertionError after ``seconds``."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(every)
    return found


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
