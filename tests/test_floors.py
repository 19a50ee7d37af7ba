"""The house has floors: a module imports only what stands below it, or before it on its own floor.

An import for type checkers only (``if TYPE_CHECKING``) is no arrow. One inside a function is.
"""

import ast
import re
from pathlib import Path

import fluidfast

ROOT = Path(fluidfast.__file__).parent

FLOORS: tuple[tuple[str, ...], ...] = (
    # 0: the ground; nothing of ours, but for the exceptions
    ("_version", "errors", "texts", "checks", "states", "state", "common", "keys", "settings", "process", "lua",
     "scripts", "places", "_pqueue", "_clock", "_resp"),
    # 1: what a run is
    ("_machine", "params", "schedule", "record", "_run", "run", "task", "config"),
    # 2: bytes, events, and what a broker promises
    ("_codec", "_leases", "events", "workers", "broker"),
    # 3: the brokers
    ("memory_broker", "_lane", "redis_link", "redis_servers", "redis_rights", "redis_wakeup", "redis_channel",
     "redis_lock", "redis_dead", "redis_broker", "sharded_broker"),
    # 4: the two sides of a broker
    ("keeper", "settler", "_outbox", "producer", "_front", "backpressure", "bulk", "dead", "replies", "cpubound",
     "executor", "threads"),
    # 5: the loop
    ("_slots", "engine"),
    # 6: what composes them
    ("plugin", "sync", "manager", "consumer", "clock"),
    # faces
    ("http", "__init__", "cli", "commands", "__main__", "scheduler", "utils", "db", "tools_fastapi"),
)  # fmt: skip

UP_WHEN_CALLED = {("_run", "_codec"), ("_run", "executor"), ("task", "cpubound")}
"""A run's handle (``queue_dump_json``, ``execute``) and ``@task(cpu_bound=True)`` reach up, within a function."""

PLACE = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}
CIMPORT = re.compile(r"^\s*from (?:\.|fluidfast\.)(\w+) (?:c?import) ", re.M)


def modules() -> dict[str, list[Path]]:
    """Files by the name that stands on a floor: a module, or a package with all that is in it."""
    found: dict[str, list[Path]] = {}
    for path in [*ROOT.rglob("*.py"), *ROOT.glob("*.pyx")]:
        found.setdefault(path.relative_to(ROOT).parts[0].partition(".")[0], []).append(path)
    return found


def imports(path: Path) -> set[str]:
    """What of ours a file imports, by the name that stands on a floor."""
    if path.suffix == ".pyx":
        return set(CIMPORT.findall(path.read_text()))
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 0:
                if module.partition(".")[0] != "fluidfast":
                    continue
                parts = module.split(".")[1:]
            else:
                parts = [*package[: len(package) - node.level + 1], *filter(None, module.split("."))]
            names = [parts[0]] if parts else [alias.name for alias in node.names]
            found.update(name if name in PLACE else "__init__" for name in names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "fluidfast":
                    found.add([*alias.name.split("."), "__init__"][1])
    return found


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(PLACE)


def test_no_arrow_runs_up() -> None:
    up = [
        f"{path.relative_to(ROOT)} imports {name}"
        for module, paths in modules().items()
        for path in paths
        for name in imports(path)
        if name != module and PLACE[name] > PLACE[module] and (module, name) not in UP_WHEN_CALLED
    ]
    assert up == []


def test_the_ground_floor_imports_exceptions_only() -> None:
    for module in FLOORS[0]:
        for path in modules()[module]:
            below = imports(path) - {module, "errors", "checks", "states", "lua", "__init__"}
            assert not below, f"{path.relative_to(ROOT)} imports {below}"


def test_only_some_know_redis() -> None:
    knows = {
        path.relative_to(ROOT).parts[0]
        for path in ROOT.rglob("*.py")
        if re.search(r"^\s*(import|from) (redis|hiredis)\b", path.read_text(), re.M)
    }
    assert knows == {"redis_broker.py", "redis_link.py", "redis_lock.py", "redis_servers.py"}
