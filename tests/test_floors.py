"""The house has floors: a package imports only what stands below it, and no two files import each other.

Counted are all imports: in Python and in Cython files, within functions, for type checkers only.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import fluidfast

ROOT = Path(fluidfast.__file__).parent
SOURCES = {".py", ".pyx", ".pxd", ".pxi"}
MOST_LINES = 800

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"_version", "errors", "texts", "checks"}),
    frozenset({"settings"}),
    frozenset({"core"}),
    frozenset({"run", "wire"}),
    frozenset({"brokers", "execute", "observe"}),
    frozenset({"produce", "consume"}),
    frozenset({"manage"}),
    # faces: what people touch
    frozenset({"http", "commands", "db"}),
    frozenset({"cli", "__main__", "testing"}),
    frozenset({"scheduler", "utils", "tools_fastapi"}),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

UP_WHEN_CALLED = {("core._run", "wire._codec"), ("core._run", "execute.executor")}
"""A run's handle (``queue_dump_json``, ``execute``) reaches up, within a function."""

FROM = re.compile(r"^\s*from (\.*)([\w.]*) c?import \(?([\w, *]+)", re.M)


def name_of(path: Path) -> str:
    """Return the name of a module within the package: ``brokers.redis.keys``, ``http`` for its ``__init__``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, list[Path]]:
    """Return the files of each module: a compiled one has a .pyx and perhaps a .pxd."""
    found: dict[str, list[Path]] = {}
    for path in sorted(ROOT.rglob("*")):
        if path.suffix in SOURCES:
            found.setdefault(name_of(path), []).append(path)
    return found


MODULES = sources()
FACES = {name for name, paths in MODULES.items() if any(path.name == "__init__.py" for path in paths)}
"""Packages. An import of one is an import of the file that is named, and of the package where none is."""


def written_imports(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield each import of a file: how many dots, the module, the names."""
    if path.suffix != ".py":
        for dots, module, names in FROM.findall(path.read_text()):
            yield len(dots), module, [name.strip().split(" ")[0] for name in names.split(",")]
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, []


def imports(path: Path) -> set[str]:
    """Return the modules of ours that a file imports."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = set()
    for level, module, names in written_imports(path):
        if level:
            target = [*package[: len(package) - level + 1], *filter(None, module.split("."))]
        elif module.partition(".")[0] == "fluidfast":
            target = module.split(".")[1:]
        else:
            continue
        inside = {".".join([*target, name]) for name in names} & MODULES.keys()
        found |= inside
        if len(inside) < max(len(names), 1):
            found.add(".".join(target))
    return found - {name_of(path)}


ARROWS = {name: set().union(*map(imports, paths)) for name, paths in MODULES.items()}


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the groups of names that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(arrows.get(start, ()))
        while ahead:
            name = ahead.pop()
            if name not in seen:
                seen.add(name)
                ahead += arrows.get(name, ())
        return seen

    reach = {name: reached(name) for name in arrows}
    groups = {frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in reach}
    return sorted(sorted(group) for group in groups if group)


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_has_its_floor() -> None:
    assert {room(name) for name in MODULES} - {""} == set(FLOOR)


def test_every_import_is_of_a_module() -> None:
    """Else an arrow would be missed."""
    assert set().union(*ARROWS.values()) <= MODULES.keys()


def test_no_arrow_runs_up() -> None:
    up = [
        f"{name} imports {other or 'fluidfast'}"
        for name, others in ARROWS.items()
        for other in others
        if name
        and room(name) != room(other)
        and (name, other) not in UP_WHEN_CALLED
        # the package itself hands names on: those who import from it stand above all that it imports
        and FLOOR[room(name)] <= (FLOOR[room(other)] if other else FLOOR["manage"])
    ]
    assert up == []


def test_no_files_import_each_other() -> None:
    files = {
        name: {other for other in others if other not in FACES and (name, other) not in UP_WHEN_CALLED}
        for name, others in ARROWS.items()
        if name not in FACES
    }
    assert circles(files) == []


@pytest.mark.parametrize("depth", [1, 2])
def test_no_packages_import_each_other(depth: int) -> None:
    """``manage`` and ``consume`` (depth 1), and also ``brokers.redis`` and ``brokers.memory`` (depth 2)."""
    packages: dict[str, set[str]] = {}
    for name, others in ARROWS.items():
        mine = ".".join(name.split(".")[:depth])
        theirs = {".".join(other.split(".")[:depth]) for other in others if (name, other) not in UP_WHEN_CALLED}
        packages.setdefault(mine, set()).update(theirs - {mine, ""})
    assert circles(packages) == []


def test_only_the_broker_on_redis_knows_redis() -> None:
    knows = {
        name
        for name, paths in MODULES.items()
        for path in paths
        if re.search(r"^\s*(?:c?import|from) (?:redis|hiredis)\b", path.read_text(), re.M)
    }
    assert {name for name in knows if not name.startswith("brokers.redis.")} == set()
    assert knows  # the search finds them


def own_names(tree: ast.Module) -> set[str]:
    """Return the names that a file defines: functions, classes, and attributes of ``self``."""
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    stored = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return defined | {n.attr for n in stored if ast.unparse(n.value) == "self"}


def test_no_broker_reads_private_names_of_another_file() -> None:
    theirs = {"asyncio._get_running_loop", "connection._close", "connection._reader", "connection._writer"}
    read = set()
    for path in (ROOT / "brokers").rglob("*.py"):
        tree = ast.parse(path.read_text())
        own = own_names(tree)
        read |= {
            f"{path.name}: {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr)
            if ast.unparse(node.value) not in ("self", "cls") and node.attr not in own
            if ast.unparse(node) not in theirs
        }
    assert read == set()


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for p in MODULES.values() for path in p}
    assert {path for path, lines in lengths.items() if lines > MOST_LINES} == set()
