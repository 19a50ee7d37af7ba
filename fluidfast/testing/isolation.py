"""``isolated``: a manager works on a broker of a test's own, and is as it was when the test is over."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..brokers.base import TaskRegistry
from ..core._time import new_id
from ..core.workers import Worker
from ..errors import TaskUsageError
from ..manage.consumer import TaskConsumer
from ..manage.manager import TaskManager
from .broker import StagedBroker
from .harness import Harness

__all__ = ["isolated"]


@contextmanager
def isolated(manager: TaskManager | None = None) -> Iterator[Harness]:
    """Let ``manager`` work on an empty ``memory://`` broker of its own within the block, whatever its ``broker_url``.

    The manager stays the same object, so code that imported it queues into the test's broker. At the end it has its
    own broker back. Handlers and hooks that were registered within the block are gone then, and so are tasks whose
    functions were defined within another function.

    ``manager``: a manager, consumer or scheduler that is not in use; None: a new ``TaskManager`` without tasks.

    Raises:
        TaskUsageError: the manager is in use in a running event loop, or it is not a manager.
    """
    if manager is None:
        manager = TaskManager(broker_url="memory://")
    refuse_in_use(manager)
    before, registry = manager.broker, manager.registry
    dispatcher, listeners, hooks = manager.dispatcher, manager._listeners, manager.hooks
    broker = StagedBroker(f"memory://test-{new_id()[:12]}")
    for task in registry.values():
        broker.register_task(task)
    manager._attach(broker)
    harness = Harness(manager, broker, consumer_of(manager, broker))
    try:
        yield harness
    finally:
        harness.close()
        manager.sync.close()
        keep_new(broker.registry, registry)
        manager.dispatcher, manager._listeners = dispatcher, listeners
        manager.hooks = manager.intake.hooks = hooks
        for name in ("register_async_handler", "unregister_async_handler"):  # those of the consumer
            manager.__dict__.pop(name, None)
        manager._attach(before)


def refuse_in_use(manager: TaskManager) -> None:
    if not isinstance(manager, TaskManager):
        raise TaskUsageError(f"isolated() takes a TaskManager, not a {type(manager).__name__}")
    consumes = isinstance(manager, Worker) and manager.has_started() and not manager.is_stopped()
    if consumes or manager.loop_in_use() is not None:
        raise TaskUsageError(
            f"this {type(manager).__name__} is in use in a running event loop, so it cannot get another broker: start "
            "it within the test"
        )


def consumer_of(manager: TaskManager, broker: StagedBroker) -> TaskConsumer:
    """Return the consumer that executes the runs, one after the other, on the same broker."""
    consumer = TaskConsumer.of(manager)
    if isinstance(manager, TaskConsumer):
        for event, handler in manager._async_dispatcher_worker.dispatcher.registered():
            consumer.register_async_handler(event, handler)
    consumer._async_contexts = [Entered(manager), consumer._async_dispatcher_worker]
    config = consumer.config
    config.consume_tasks, config.max_concurrent_tasks = True, 1
    consumer.engine.concurrency = 1
    consumer._attach(broker)
    return consumer


class Entered:
    """Enters the manager's contexts for as long as the consumer runs, unless the application under test has."""

    def __init__(self, manager: TaskManager) -> None:
        self._manager = manager
        self._entered = False

    async def __aenter__(self) -> None:
        if not self._manager._entered:
            await self._manager._enter()
            self._entered = True

    async def __aexit__(self, *exc_info: object) -> None:
        if self._entered:
            self._entered = False
            await self._manager._leave(*exc_info)


def keep_new(found: TaskRegistry, registry: TaskRegistry) -> None:
    """Keep tasks of modules, which are imported only once. Drop those of local functions: they are the test's own."""
    for task in found.values():
        function = task.run_executor(in_process=True)
        if task.name not in registry and "<locals>" not in getattr(function, "__qualname__", ""):
            registry.add(task)
