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
    "get_task_manger",
    "get_task_manger_from_request",
    "setup_fastapi",
    "task_manager_fastapi",
]

# The names of aio-fluid 1.x, as they were spelt.
setup_fastapi = task_manager_fastapi
get_task_manger = get_task_manager
get_task_manger_from_request = get_task_manager_from_request
