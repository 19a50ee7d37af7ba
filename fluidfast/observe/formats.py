"""The two formats of a log, for people and for machines: one record a line, whatever is in it."""

import json
import logging
import time
from typing import Any

import msgspec

from ..texts import printable
from .filters import numbered

__all__ = ["FORMAT", "JsonFormatter", "LineFormatter"]

MAX_MESSAGE = 32_768
"""Characters of a message that are shown."""
MAX_TRACEBACK = 65_536
"""Characters of a traceback that are shown."""
ASCII_CONTROLS = "".join(map(chr, range(32)))
"""Characters that JSON escapes itself."""
TRACEBACK_BREAKS = "\n\t"
STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""Attributes of every record; all others are fields that a filter or ``extra=`` has added."""
RUN_FIELDS = ("task", "run_id", "attempt", "batch")
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class LineFormatter(logging.Formatter):
    """Text: one line a record, and its traceback.

    By default it has the worker's number behind the logger's name if there are several: ``fluidfast.worker[2]``. A
    record that was made in a run ends with the fields of that run. Control characters are escaped, so that a record
    cannot pass for two or paint over another.
    """

    def __init__(self, fmt: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(FORMAT.replace("%(name)s", numbered("%(name)s")) if fmt is None else fmt, *args, **kwargs)
        self._stamp = (-1, "")  # of the second of the last record

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, MAX_MESSAGE, keep="\t")
        text = super().formatMessage(record)
        run_id = getattr(record, "run_id", "")
        if run_id and f"run={run_id}" not in text and not self.usesRun():
            batch = getattr(record, "batch", 0)
            more = f" and {batch - 1} more" if batch > 1 else ""
            text += f" [task={getattr(record, 'task', '')} run={run_id}{more} attempt={getattr(record, 'attempt', 1)}]"
        return text

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time of a record. That of a second is made once."""
        if datefmt is not None or self.default_msec_format is None:
            return super().formatTime(record, datefmt)
        second = int(record.created)
        made, stamp = self._stamp
        if made != second:
            stamp = time.strftime(self.default_time_format, self.converter(second))
            self._stamp = (second, stamp)
        return self.default_msec_format % (stamp, record.msecs)

    def usesRun(self) -> bool:
        """Whether the format itself shows the run."""
        return "run_id" in (self._fmt or "")

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        text = self.formatMessage(record)
        for block in tracebacks(self, record).values():
            text += f"\n{printable(block, MAX_TRACEBACK, keep=TRACEBACK_BREAKS)}"
        return text


def tracebacks(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    """The traceback and the stack of a record. Not the text that another handler has left in it: that may be raw."""
    blocks = {}
    if record.exc_info and record.exc_info[0] is not None:
        blocks["exception"] = formatter.formatException(record.exc_info)
    elif record.exc_text:  # of another process
        blocks["exception"] = record.exc_text
    if record.stack_info:
        blocks["stack"] = formatter.formatStack(record.stack_info)
    return blocks


class JsonFormatter(logging.Formatter):
    """A JSON object a record: time (UTC), level, name, message; the fields of its run; whatever ``extra=`` added; the
    traceback if there is one."""

    def __init__(self, *args: Any, indent: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.indent = indent

    def format(self, record: logging.LogRecord) -> str:
        added = {name: value for name, value in record.__dict__.items() if name not in STANDARD}
        for name in RUN_FIELDS:
            if not added.get(name, True):  # no run
                del added[name]
        fields = {
            "time": utc(record.created),
            "level": record.levelname,
            "name": record.name,
            "message": printable(record.getMessage(), MAX_MESSAGE, keep=ASCII_CONTROLS),
        }
        for name, value in added.items():
            fields.setdefault(printable(name), encodable(value))
        for name, block in tracebacks(self, record).items():
            fields[name] = printable(block, MAX_TRACEBACK, keep=ASCII_CONTROLS)
        encoded = msgspec.json.encode(fields)
        return (msgspec.json.format(encoded, indent=self.indent) if self.indent else encoded).decode()


def utc(seconds: float) -> str:
    """Return a time as RFC 3339 writes it, to the millisecond."""
    whole, millis = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{millis:03d}Z"


def encodable(value: Any) -> Any:
    """Return a field of a record as something that JSON can hold."""
    if isinstance(value, str):
        return printable(value, MAX_MESSAGE, keep=ASCII_CONTROLS)
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    try:
        text = json.dumps(value, default=str, allow_nan=False)  # ASCII, so nothing in it can steer a terminal
    except Exception:  # of its own methods too
        text = ""
    if not text or len(text) > MAX_MESSAGE:
        try:
            return printable(repr(value), MAX_MESSAGE, keep=ASCII_CONTROLS)
        except Exception as exc:
            return f"<its repr raised {type(exc).__name__}>"
    return msgspec.Raw(text.encode())
