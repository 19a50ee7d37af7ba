"""Tests of your own tasks: a broker for each test, ``drain()``, assertions about queued runs, a clock that you move.

With pytest, use the fixtures ``fluidfast_manager`` and ``fluidfast_consumer``. With another test runner, use
``isolated``, which they are made of:

    with isolated(manager) as consumer:
        manager.sync.queue(send, to="grace@example.com")
        consumer.assert_queued(send, to="grace@example.com")
        consumer.sync.drain()
"""

from .harness import BlockingHarness, Ended, Harness
from .isolation import isolated

__all__ = ["BlockingHarness", "Ended", "Harness", "isolated"]
