"""Where ``queue --from`` reads runs: lines of JSON, CSV, Parquet; files, compressed files and pipes."""

import csv
import gzip
import importlib
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ..core.params import adapter_for, params_error
from ..core.task import Task
from .display import one_line
from .fields import Columns
from .group import CommandError, did_you_mean
from .lines import CHUNK_BYTES, LineReader

__all__ = ["FORMATS", "BadLine", "Rejects", "Source", "json_params", "open_source"]

FORMATS = ("ndjson", "csv", "parquet")
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
BOM = b"\xef\xbb\xbf"
REJECTED = re.compile(rb"# line \d+: ")
"""How a line about a bad line begins, in a file of rejects."""
TOO_LONG = "it is longer than the largest allowed run (max_payload_bytes)"
NO_PARQUET = "reading Parquet needs pyarrow: pip install 'fluidfast[parquet]'"
BATCH_ROWS = 1000

Entry = tuple[int, Any]
"""Number of the line, or of the row of a Parquet file, and its text (None: too long) or values."""


class BadLine(Exception):
    """A line that cannot be queued; its text says why."""


@dataclass
class Source:
    """A file or a pipe.

    ``size``: of what ``position`` counts; 0: not known. ``header``: how a file of rejects begins.
    """

    task: Task[Any]
    size: int = 0
    header: bytes = field(default=b"", init=False)

    def entries(self) -> AsyncIterator[list[Entry]]:
        """The lines, some at a time. Raises OSError, CommandError."""
        raise NotImplementedError

    def params(self, content: Any) -> Any:
        """The params of a line. Raises BadLine."""
        raise NotImplementedError

    def text(self, content: Any) -> bytes:
        """The line for a file of rejects."""
        return bytes(content or b"")

    @property
    def position(self) -> int:
        raise NotImplementedError

    def stop(self) -> None:
        """Give nothing more."""
        raise NotImplementedError


class LineSource(Source):
    """A JSON object a line."""

    def __init__(self, task: Task[Any], size: int, lines: LineReader, position: Callable[[], int] | None) -> None:
        super().__init__(task, size)
        self.lines = lines
        self._position = position
        self.stop = lines.stop  # type: ignore[method-assign]

    @property
    def position(self) -> int:
        return self.lines.bytes_read if self._position is None else self._position()

    async def entries(self) -> AsyncIterator[list[Entry]]:
        async for lines in self.lines:
            yield [(number, self.clean(number, line)) for number, line in lines if is_content(line)]

    def clean(self, number: int, line: bytes | None) -> bytes | None:
        return line.removeprefix(BOM) if number == 1 and line is not None else line

    def params(self, content: bytes | None) -> dict[str, Any]:
        return json_params(content)


def is_content(line: bytes | None) -> bool:
    """Whether a line is neither empty nor about a bad line."""
    return line is None or (bool(line.strip()) and not REJECTED.match(line))


def json_params(line: bytes | None) -> dict[str, Any]:
    """The params in a JSON object. Raises BadLine."""
    if line is None:
        raise BadLine(TOO_LONG)
    try:
        params = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadLine(f"it is not JSON: {exc}") from exc
    if not isinstance(params, dict):
        raise BadLine(f"it must be a JSON object, not {json_kind(params)}")
    return params


def json_kind(value: Any) -> str:
    kinds = {str: "a string", list: "an array", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


class CSVSource(LineSource):
    """A table of texts, whose first line names the fields. A text within quotes may go over several lines."""

    def __init__(self, *arguments: Any, delimiter: str) -> None:
        super().__init__(*arguments)
        csv.field_size_limit(self.lines.max_bytes)
        self.delimiter = delimiter
        self.columns = Columns(self.task)
        self.names: list[str] = []
        self._read = adapter_for(self.task.params_model).from_texts
        self._first = 0  # line of the record whose quotes are open
        self._open: list[bytes] = []
        self._size = self._quotes = 0

    async def entries(self) -> AsyncIterator[list[Entry]]:
        async for lines in self.lines:
            if records := list(self.records(lines)):
                yield records
        if self._open:
            yield [self.close()]

    def records(self, lines: Sequence[tuple[int, bytes | None]]) -> Iterator[Entry]:
        for number, line in lines:
            if not self.names:
                if is_content(line):
                    self.read_header(self.clean(number, line))
            elif self._open:
                if (entry := self.go_on(line)) is not None:
                    yield entry
            elif line is not None and b'"' in line and self.is_open(line):
                self._first, self._open = number, [line]
                self._size, self._quotes = len(line), line.count(b'"')
            elif is_content(line):
                yield number, line

    def go_on(self, line: bytes | None) -> Entry | None:
        """Take a line into the open record. Gives the record if that closes it, or is too much."""
        if line is None:
            self._size = self.lines.max_bytes + 1
        else:
            self._open.append(line)
            self._size += len(line) + 1
            self._quotes += line.count(b'"')
        if self._size > self.lines.max_bytes:
            entry = self._first, None
            self._open = []
            return entry
        if self._quotes % 2 or self.is_open(b"\n".join(self._open)):
            return None
        return self.close()

    def close(self) -> Entry:
        entry = self._first, b"\n".join(self._open)
        self._open = []
        return entry

    def is_open(self, text: bytes) -> bool:
        """Whether it ends within quotes."""
        try:
            self.cells(text.decode("latin-1"))
        except csv.Error as exc:
            return "unexpected end" in str(exc)
        return False

    def cells(self, text: str) -> list[str]:
        return next(csv.reader([text], delimiter=self.delimiter, strict=True), [])

    def read_header(self, line: bytes | None) -> None:
        try:
            names = [name.strip() for name in self.cells((line or b"").decode())]
        except (csv.Error, UnicodeDecodeError) as exc:
            raise CommandError(f"the header, the first line, cannot be read: {exc}") from exc
        known, task = self.columns.known, self.task.name
        if len(names) == 1 and (other := next((c for c in ";\t|" if c in names[0]), None)):
            raise CommandError(f"the header has one column, {one_line(names[0], 80)!r}: try --delimiter {other!r}")
        if not all(names) or len(set(names)) < len(names):
            raise CommandError(f"the header has a column without a name, or two of one name: {', '.join(names)}")
        if lacks := sorted(self.columns.required.difference(names)):
            hint = did_you_mean(lacks[0], set(names) - known)
            raise CommandError(f"the header has no column {lacks[0]!r}, which task {task!r} requires{hint}")
        if known and (strange := [name for name in names if name not in known]):
            print(f"fluidfast: columns that are no field of {task!r}: {', '.join(strange)}", file=sys.stderr)
        self.names = names
        self.header = (line or b"").rstrip(b"\r") + b"\n"

    def params(self, content: bytes | None) -> Any:
        if content is None:
            raise BadLine(TOO_LONG)
        try:
            cells = self.cells(content.decode())
        except (csv.Error, UnicodeDecodeError) as exc:
            raise BadLine(f"it is not CSV: {exc}") from exc
        if len(cells) != len(self.names):
            raise BadLine(f"it has {len(cells)} fields, the header has {len(self.names)}")
        try:
            values = self.columns.of_texts(dict(zip(self.names, cells, strict=True)))
        except ValueError as exc:
            raise BadLine(str(exc)) from exc
        try:
            return self._read(values)
        except Exception as exc:
            raise BadLine(str(params_error(self.task.name, exc))) from None


class ParquetSource(Source):
    """Rows of a Parquet file, numbered from 1."""

    def __init__(self, task: Task[Any], name: str, stack: ExitStack) -> None:
        try:
            parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError as exc:
            raise CommandError(NO_PARQUET) from exc
        open_file(name, stack)  # which says what is wrong with it
        try:
            self.file = parquet.ParquetFile(name)
        except Exception as exc:
            raise CommandError(f"--from {name} is not a Parquet file: {one_line(exc)}") from exc
        stack.callback(self.file.close)
        super().__init__(task, self.file.metadata.num_rows)
        self.columns = Columns(task)
        self.rows = 0
        self.stopped = False

    @property
    def position(self) -> int:
        return self.rows

    def stop(self) -> None:
        self.stopped = True

    async def entries(self) -> AsyncIterator[list[Entry]]:
        try:
            for batch in self.file.iter_batches(BATCH_ROWS):
                rows = batch.to_pylist()
                yield list(enumerate(rows, self.rows + 1))
                self.rows += len(rows)
                if self.stopped:
                    return
        except OSError:
            raise
        except Exception as exc:  # pyarrow's own
            raise OSError(None, one_line(exc)) from exc

    def params(self, content: dict[str, Any]) -> dict[str, Any]:
        return self.columns.of_values(content)

    def text(self, content: dict[str, Any]) -> bytes:
        return msgspec.json.encode(content, enc_hook=str)


def open_source(
    name: str, task: Task[Any], stack: ExitStack, *, kind: str | None, delimiter: str | None, max_bytes: int
) -> Source:
    """Open what is to be read: ``-`` is stdin. ``kind``: one of FORMATS; None: as the name ends, else ndjson.

    Raises:
        CommandError: it cannot be opened.
    """
    plain = name.removesuffix(".gz")
    kind = kind or SUFFIXES.get(Path(plain).suffix.lower(), "ndjson")
    if delimiter is not None and kind != "csv":
        raise CommandError("--delimiter is for CSV only: add --format csv")
    if kind == "parquet":
        if plain != name or name == "-":
            raise CommandError("Parquet is read from a file that is not compressed as a whole")
        return ParquetSource(task, name, stack)
    position: Callable[[], int] | None = None
    if name == "-":
        descriptor, size = sys.stdin.fileno(), 0
    else:
        file = open_file(name, stack)
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
    read = lambda: os.read(descriptor, CHUNK_BYTES)  # noqa: E731
    if plain != name:
        unpacked = stack.enter_context(gzip.GzipFile(fileobj=file))
        read, position = (lambda: unpacked.read1(CHUNK_BYTES)), file.tell
    lines = LineReader(read, max_bytes=max_bytes)
    if kind == "csv":
        delimiter = delimiter or ("\t" if Path(plain).suffix.lower() == ".tsv" else ",")
        return CSVSource(task, size, lines, position, delimiter=delimiter)
    return LineSource(task, size, lines, position)


def open_file(name: str, stack: ExitStack) -> BinaryIO:
    try:
        file = stack.enter_context(Path(name).open("rb", buffering=0))  # noqa: SIM115
        file.read(0)
    except OSError as exc:
        raise CommandError(f"--from {name}: {exc.strerror}") from exc
    return file


class Rejects:
    """The file of bad lines: each behind a line with its number and what is wrong, which ``queue --from`` leaves out.

    It is appended to.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        try:
            self.file = Path(name).open("ab")  # noqa: SIM115
            if source != "-" and os.path.samestat(os.fstat(self.file.fileno()), os.stat(source)):
                raise CommandError("--rejects names the file that is read")
        except OSError as exc:
            raise CommandError(f"--rejects {name}: {exc.strerror}") from exc
        self.empty = self.file.tell() == 0

    def add(self, number: int, why: str, line: bytes, header: bytes) -> None:
        if self.empty:
            self.file.write(header)
            self.empty = False
        self.file.write(f"# line {number}: {why}\n".encode() + (line.rstrip(b"\r") + b"\n" if line else b""))

    def close(self) -> None:
        """Raises CommandError if it cannot be written. Leaves no empty file."""
        try:
            self.file.close()
        except OSError as exc:
            raise CommandError(f"--rejects {self.name}: {exc.strerror}") from exc
        if self.empty and os.path.getsize(self.name) == 0:
            os.unlink(self.name)
