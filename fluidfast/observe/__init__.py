"""What a worker tells of its runs: the fields of a run on log records, formats, and a line a run."""

from .filters import RunFilter
from .formats import JsonFormatter, LineFormatter

__all__ = ["JsonFormatter", "LineFormatter", "RunFilter"]
