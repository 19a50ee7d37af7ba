"""The HTTP routes, under aio-fluid's name. Needs the extra ``http``."""

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
