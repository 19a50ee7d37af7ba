"""Run history: the runs that ended, in a table of PostgreSQL or SQLite. Needs the extra ``db``.

manager.with_plugin(History("postgresql://localhost/app"))
"""

try:
    import sqlalchemy as sqlalchemy
except ImportError as exc:
    raise ImportError("the run history needs SQLAlchemy: pip install 'fluidfast[db]'") from exc

from .plugin import History
from .records import Attempt, HistoryPage, HistoryQuery, HistoryStats, RunDetail, RunRecord, read_keep

__all__ = ["Attempt", "History", "HistoryPage", "HistoryQuery", "HistoryStats", "RunDetail", "RunRecord", "read_keep"]
