"""The HTTP service: it answers at once and leaves the slow work to the workers."""

import os
import secrets
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from tasks import manager, send_welcome

from fluidfast import task_manager_fastapi
from fluidfast.errors import BrokerConnectionError

Credentials = Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]


class Signup(BaseModel):
    email: str


def only_staff(credentials: Credentials) -> None:
    """Let requests pass that carry the token of ADMIN_TOKEN."""
    expected = os.environ.get("ADMIN_TOKEN", "")
    if not expected or not secrets.compare_digest(credentials.credentials.encode(), expected.encode()):
        raise HTTPException(401, "wrong token")


# Adds the routes /tasks, /tasks-status ... for staff, and connects and closes the manager with the application.
app = task_manager_fastapi(manager, auth=only_staff, app=FastAPI(title="Signup"))


@app.post("/signups", status_code=202)
async def sign_up(signup: Signup) -> dict[str, str]:
    """Queue the welcome mail. When queue() returns, the server has the run."""
    try:
        run = await send_welcome.queue(signup.email)
    except BrokerConnectionError as exc:
        raise HTTPException(503, "try again later") from exc
    return {"run_id": run.id}


@app.get("/health")
async def health() -> dict[str, int]:
    """Say how many runs wait. 503 while the broker is unavailable."""
    try:
        return dict(await manager.broker.queue_length())
    except BrokerConnectionError as exc:
        raise HTTPException(503, "broker unavailable") from exc
