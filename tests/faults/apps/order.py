"""Row 15: a worker that notes what each of its claims gave."""

from __future__ import annotations

import asyncio
import os

import msgspec
from worker_app import OPTIONS, ledger

from fluidfast import TaskRun, task
from fluidfast.brokers.contract import Claim
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.wire.peek import read_fields


class Step(msgspec.Struct):
    ms: float = 0


@task
async def step(ctx: TaskRun[Step]) -> None:
    ledger().started(ctx.id)
    if ctx.params.ms:
        await asyncio.sleep(ctx.params.ms / 1000)
    ledger().finished(ctx.id)


if OPTIONS:
    claim = RedisTaskBroker.claim
    bug = os.environ.get("PLANT", "")

    async def claim_noted(self: RedisTaskBroker, *args: object, **kwargs: object) -> Claim:
        ledger().note("claiming")
        found = await claim(self, *args, **kwargs)  # type: ignore[arg-type]
        if bug == "lifo":
            found.items.reverse()
        letters = "".join(item.field[0] for item in found.items)
        if letters:
            urgent = [str(read_fields(item.payload)["id"]) for item in found.items if item.field[0] == "h"]
            ledger().note(
                f"claim {letters.count('h')} {letters.count('m')} {letters.count('l')} {' '.join(urgent[:50])}"
            )
        return found

    RedisTaskBroker.claim = claim_noted  # type: ignore[method-assign, assignment]
    if bug == "low-first":
        from fluidfast.brokers.url import BrokerOptions
        from fluidfast.core.states import PRIORITIES

        BrokerOptions.queues = property(lambda self: PRIORITIES[::-1], lambda self, value: None)  # type: ignore[assignment]
