"""The HTTP routes, under aio-fluid's name. Needs the extra ``http``."""

from typing import NoReturn

from ..http import (
    TaskCreate,
    TaskManagerDep,
    TaskUpdate,
    get_router,
    get_task_manager,
    get_task_manager_from_request,
    task_manager_fastapi,
)

__all__ = [
    "TaskCreate",
    "TaskManagerDep",
    "TaskUpdate",
    "get_router",
    "get_task_manager",
    "get_task_manager_from_request",
    "task_manager_fastapi",
]

OLD_NAMES = {
    "setup_fastapi": "task_manager_fastapi",
    "get_task_manger": "get_task_manager",
    "get_task_manger_from_request": "get_task_manager_from_request",
}
"""Names of aio-fluid 1.x, and those that took their place."""


def __getattr__(name: str) -> NoReturn:
    hint = f": use {OLD_NAMES[name]}, its name since aio-fluid 2" if name in OLD_NAMES else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
