"""TARGET, ``MODULE:NAME`` on the command line: the manager that it names, or why it names none."""

import copy
import importlib
import logging
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import click
import msgspec

from ..brokers.url import BrokerURL
from ..checks import MAX_COUNT, shown
from ..core._time import new_id
from ..manage.consumer import TaskConsumer
from ..manage.manager import TaskManager
from ..settings import Unset
from ..texts import describe, printable
from .display import print_pairs
from .group import CommandError, did_you_mean

__all__ = [
    "HELP", "CommandError", "Target", "as_consumer", "as_manager", "at_least_one", "check_writable", "first_of",
    "load", "of_application", "takes_target", "target_of", "url_of_its_own", "write_result",
]  # fmt: skip

HELP = """

TARGET is MODULE:NAME, such as app:manager: a module, and the name in it of a TaskManager or TaskConsumer, of a function
that returns one, or of a FastAPI application that has one.
"""
FOUND = "fluidfast.commands.target"
"""Where click's context holds the Target."""

logger = logging.getLogger("fluidfast.worker")

CONCURRENCY = 32
"""Slots of a worker if nobody sets their number. In code the default is 5."""
SHOWN = 8
"""Names that a hint shows, at most."""
OURS = str(Path(__file__).parents[1]) + os.sep
STDLIB = sysconfig.get_path("stdlib") + os.sep


@dataclass(frozen=True, slots=True)
class Target:
    """The manager that a command is for. ``text``: its name in messages; ``find``: import it."""

    text: str
    find: Callable[[], Any]


def takes_target(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument TARGET; its function reads it by ``target_of``."""

    def keep(ctx: click.Context, _: click.Parameter, text: str) -> str:
        ctx.meta[FOUND] = Target(text, lambda: load(text))
        return text

    @wraps(function)  # with a value that is not exposed click 8.1 completes nothing
    def without(*arguments: Any, target: str = "", **options: Any) -> Any:
        return function(*arguments, **options)

    return click.argument("target", metavar="TARGET", callback=keep)(without)


def target_of(ctx: click.Context) -> Target:
    target: Target = ctx.meta[FOUND]
    return target


def of_application(command: click.Command) -> click.Command:
    """Return the command without TARGET, for the command line of an application, which sets ``ctx.meta[FOUND]``."""
    made = copy.copy(command)
    made.params = [param for param in command.params if param.name != "target"]
    made.help = (command.help or "").replace(HELP.strip(), "").strip()
    made.epilog = re.sub(r"\bfluidfast (\w+) app:manager", r"python -m myapp \1", command.epilog or "")
    return made


def first_of(group: BaseExceptionGroup[Any], *kinds: type[Exception]) -> Exception | None:
    """The first exception of these kinds in a group, at whatever depth."""
    for exc in group.exceptions:
        found = first_of(exc, *kinds) if isinstance(exc, BaseExceptionGroup) else exc
        if isinstance(found, kinds):
            return found
    return None


def load(text: str) -> Any:
    """The object that ``MODULE:NAME`` names (``NAME`` may have dots); the current directory is looked at first.

    Raises:
        CommandError: the text has another form, the module cannot be imported, or has no such name.
    """
    module_name, _, path = text.partition(":")
    if module_name.endswith(".py") or os.sep in module_name:
        hint = ".".join(Path(module_name).with_suffix("").parts).lstrip("./")
        raise CommandError(f"{module_name!r} is a file; give a module: {hint}:{path or 'manager'}")
    if not (module_name and path):
        raise CommandError(
            f"{text!r} is not of the form MODULE:NAME, such as {module_name or 'app'}:{path or 'manager'}"
        )
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise CommandError(f"{module_name!r} is not a module name")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        missing = exc.name if isinstance(exc, ModuleNotFoundError) else None
        if missing is not None and (missing == module_name or module_name.startswith(missing + ".")):
            raise CommandError(
                f"there is no module {missing!r} in {here} or elsewhere on Python's path{modules_in(here, missing)}"
            ) from None
        if isinstance(exc, SystemExit):
            raise CommandError(
                f"module {module_name!r} exits while it is imported: {described(exc)}; "
                'move the code that starts the program under if __name__ == "__main__"'
            ) from exc
        raise CommandError(f"module {module_name!r} cannot be imported: {described(exc)}") from exc
    done = f"module {module_name!r}"
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            hint = did_you_mean(part, dir(found)) or managers_in(found)
            raise CommandError(f"{done} has no {part!r}{hint}") from None
        done = f"{part!r} of {done}"
    return found


def modules_in(folder: str, name: str) -> str:
    """A hint: a module that is meant, or those that are there."""
    top = [path.stem for path in sorted(Path(folder).glob("*.py")) if path.stem.isidentifier()]
    top += [path.parent.name for path in sorted(Path(folder).glob("*/__init__.py")) if path.parent.name.isidentifier()]
    shown = [printable(each) for each in top if not each.startswith("_")][:SHOWN]
    return did_you_mean(name, top) or (f"; there are {', '.join(shown)}" if shown else "")


def managers_in(module: Any) -> str:
    """A hint: the managers that are there."""
    if not isinstance(module, ModuleType):
        return ""
    names = [name for name, value in vars(module).items() if isinstance(value, TaskManager)]
    return f"; its managers: {', '.join(names[:SHOWN])}" if names else ""


def at_least_one(given: str | int) -> int:
    """The type of an option that counts something."""
    try:
        value = int(given)
    except ValueError:
        raise click.BadParameter(f"{printable(str(given))!r} is not a whole number") from None
    if value < 1:
        raise click.BadParameter(f"{shown(value)} is not 1 or more")
    if value > MAX_COUNT:
        raise click.BadParameter(f"{shown(value)} is more than {MAX_COUNT:,}")
    return value


def check_writable(path: Path) -> None:
    """Before a minute is spent, not after."""
    try:
        path.open("ab").close()
    except OSError as exc:
        raise CommandError(f"--json {path}: {exc.strerror}") from exc


def write_result(values: dict[str, Any], rows: list[tuple[str, str]], json_file: str | None) -> None:
    """Print the figures of a trial, and write them as JSON to a file; ``-``: only to stdout."""
    text = msgspec.json.format(msgspec.json.encode(values), indent=2)
    if json_file == "-":
        print(text.decode())
        return
    print_pairs(rows)
    if json_file is not None:
        Path(json_file).write_bytes(text + b"\n")


def url_of_its_own(text: str, kind: str, **query: str) -> str:
    """The URL with a broker name that nobody else has, and these options. As it is, if it is no URL: the broker says so
    in its own words."""
    if "://" not in text:
        return text
    name = f"{kind}-{new_id()[:12]}"
    parts = urlsplit(BrokerURL(text).raw)  # which is refused if it is none
    found = {**dict(parse_qsl(parts.query, keep_blank_values=True)), **query}
    found.pop("name", None)
    place = parts.netloc
    if parts.scheme == "memory":
        place = name
    else:
        found["name"] = name
    # not by geturl, which leaves out the slashes of a URL without a host: unix:///path
    return f"{parts.scheme}://{place}{parts.path}?{urlencode(found)}"


def described(exc: BaseException) -> str:
    """An exception of the user's own code: its type, its text, and the line of theirs where it has to be mended."""
    if isinstance(exc, SyntaxError) and exc.filename and not exc.filename.startswith("<"):
        return f"{type(exc).__name__}: {exc.msg} ({exc.filename}, line {exc.lineno})"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(exc.__traceback__)]
    others = [(name, line) for name, line in frames if not name.startswith((OURS, "<")) and name != importlib.__file__]
    # the last line of the user's own code; of a library only if there is none
    found = [(name, line) for name, line in others if not is_installed(name)] or others
    where = f" ({found[-1][0]}, line {found[-1][1]})" if found else ""
    return f"{describe(exc)}{where}"


def is_installed(filename: str) -> bool:
    """Whether a file is one of Python itself or of a package that was installed."""
    return filename.startswith(STDLIB) or "site-packages" in filename or "dist-packages" in filename


def as_manager(found: Any, text: str) -> TaskManager:
    """The manager that was found, or that what was found returns. Call it in the event loop.

    Raises:
        CommandError: it is neither, or has no tasks.
    """
    manager = manager_within(found)
    if not isinstance(manager, TaskManager) and callable(manager):
        try:
            manager = manager_within(manager())
        except (Exception, SystemExit) as exc:
            raise CommandError(f"{text}() failed: {described(exc)}") from exc
        text += "()"
    if not isinstance(manager, TaskManager):
        if hasattr(manager, "close") and hasattr(manager, "send"):  # a coroutine: nobody is to await it
            manager.close()
        kind = type(manager).__name__
        raise CommandError(f"{text} is of type {kind}; it must be a TaskConsumer or a TaskManager")
    if not manager.registry:
        raise CommandError(f"{text} has no tasks: register them with register_task or register_from_module")
    return manager


def manager_within(found: Any) -> Any:
    """The manager of a FastAPI application or of a ``TaskManagerCLI``; anything else as it is."""
    if isinstance(found, click.Command) and hasattr(found, "get_task_manager"):
        return found.get_task_manager()
    return getattr(getattr(found, "state", None), "task_manager", None) or found


def as_consumer(manager: TaskManager, concurrency: int | None) -> TaskConsumer:
    """The consumer itself; for a plain manager one with its tasks, config, deps, handlers, plugins and contexts.

    ``concurrency``: its number of slots; None: what its config or the environment sets, else CONCURRENCY.

    Handlers that register themselves with the manager later, when a context is entered, come to the consumer too.
    """
    if isinstance(manager, TaskConsumer):
        consumer = manager
    else:
        consumer = TaskConsumer.of(manager)
        say_what_is_left_out(manager)
    if concurrency is None and isinstance(consumer.config.max_concurrent_tasks, Unset):
        concurrency = CONCURRENCY
    if concurrency is not None:
        consumer.config.max_concurrent_tasks = consumer.engine.concurrency = concurrency
    return consumer


class Bare:
    """Has what every class statement makes, whichever Python runs it."""


def say_what_is_left_out(manager: TaskManager) -> None:
    """Log what a consumer that was made of a plain manager does not do."""
    kind = type(manager)
    own = {name for cls in kind.__mro__[: kind.__mro__.index(TaskManager)] for name in vars(cls)}
    if overridden := sorted(name for name in own - {*vars(object), *vars(Bare)} if hasattr(TaskManager, name)):
        logger.warning(
            "the worker turns this %s into a TaskConsumer and ignores its overrides (%s): derive it from TaskConsumer",
            kind.__name__, ", ".join(overridden),
        )  # fmt: skip
    if scheduled := [printable(task.name) for task in manager.registry.values() if task.schedule is not None]:
        logger.info(
            "this worker does not fire schedules, only a TaskScheduler does; scheduled tasks: %s", ", ".join(scheduled)
        )
