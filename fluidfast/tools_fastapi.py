"""Workers of a FastAPI application, under aio-fluid's name. Needs the extra ``http``."""

from .http import AppWorkers, WorkersDep, app_workers, get_workers_from_app, get_workers_from_request

__all__ = ["AppWorkers", "WorkersDep", "app_workers", "get_workers_from_app", "get_workers_from_request"]
