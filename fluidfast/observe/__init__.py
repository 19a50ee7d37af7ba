"""The log of runs: their fields on log records, the formats, and a line for each run."""

from .filters import RunFilter
from .formats import JsonFormatter, LineFormatter

__all__ = ["JsonFormatter", "LineFormatter", "RunFilter"]
