"""Finds out, when a connection is set up, which rights the user lacks, and whether the server throws keys away.

The commands are queued behind MULTI and never run: the server checks the rights of each when it queues it, and a
malformed one among them makes EXEC discard them all. So nothing is written, and no right is needed to ask for rights.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from ...core.states import PRIORITIES
from ._resp import pack
from .keys import Keys, ScriptKeys
from .link import Link, ServerReply
from .scripts import load

__all__ = ["CONSUMER", "PRODUCER", "commands_of", "memory_policy", "missing_rights", "warn_of_eviction"]

logger = logging.getLogger(__name__)

Command = tuple[str | bytes | int | float, ...]

PRODUCER, CONSUMER = "producer", "consumer"

_warned: set[str] = set()
_denied: set[str] = set()


def commands_of(role: str, keys: Keys) -> Mapping[str, Sequence[Command]]:
    """Commands that a role cannot do without, by the name of the right. Of several calls, one has to be allowed."""
    queues = [keys.queue(priority) for priority in PRIORITIES]
    declared = ScriptKeys(keys).enqueue("p")
    evalsha = [("EVALSHA", load("enqueue").sha, len(declared), *declared)]
    if role == PRODUCER:
        mark = keys.producer("p")
        return {
            "evalsha": evalsha,
            "get": [("GET", mark)],
            "set": [("SET", mark, 1)],
            "pexpire": [("PEXPIRE", mark, 1)],
            "llen": [("LLEN", queues[0])],
            "lpush": [("LPUSH", queue, "") for queue in queues],
        }
    lease, inbox, slots = keys.lease("b"), keys.inbox("c", "low"), keys.slots("t")
    return {
        "evalsha": evalsha,
        "eval": [("EVAL", "return 1", 1, keys.nothing)],
        "client|id": [("CLIENT", "ID")],
        "client|unblock": [("CLIENT", "UNBLOCK", 0)],
        "time": [("TIME",)],
        "set": [("SET", keys.task_run("t", "i"), "i")],
        "del": [("DEL", keys.task_run("t", "i"))],
        "exists": [("EXISTS", lease)],
        "unlink": [("UNLINK", lease)],
        "pexpire": [("PEXPIRE", keys.reply("m"), 1)],
        "llen": [("LLEN", keys.suspect)],
        "lindex": [("LINDEX", inbox, 0)],
        "lpush": [("LPUSH", keys.dead, "")],
        "rpush": [("RPUSH", queues[0], "")],
        "lpop": [("LPOP", inbox)],
        "rpop": [("RPOP", queues[0])],
        "blmove": [("BLMOVE", queues[0], inbox, "RIGHT", "LEFT", 1)],
        "hget": [("HGET", lease, "f")],
        "hset": [("HSET", lease, "f", "")],
        "hdel": [("HDEL", lease, "f")],
        "hgetall": [("HGETALL", lease)],
        "hincrby": [("HINCRBY", keys.strikes, "f", 1)],
        "zadd": [("ZADD", keys.leases, 1, "b")],
        "zrem": [("ZREM", keys.leases, "b")],
        "zscore": [("ZSCORE", keys.leases, "b")],
        "zcard": [("ZCARD", slots)],
        "zrange": [("ZRANGE", keys.delayed, 0, 0)],
        "zrangebyscore": [("ZRANGEBYSCORE", keys.leases, 0, 1)],
    }


async def missing_rights(link: Link, commands: Mapping[str, Sequence[Command]]) -> tuple[list[str], str]:
    """Names of the rights that the user of a connection lacks, and the server's words about the first.

    The connection must have no other user meanwhile. A user who may not open a transaction lacks that right, and
    nothing else is found out.

    Raises:
        ServerReply, LinkLost: the server cannot tell now.
    """
    for command in ("EXEC", "MULTI"):
        try:
            await link.call(pack((command,)))
        except ServerReply as exc:
            if is_denied(exc):
                return [command.lower()], str(exc)
            if command == "MULTI":
                raise
    calls = {name: [link.call(pack(call)) for call in several] for name, several in commands.items()}
    malformed = link.call(pack(("GET",)))
    answers = await asyncio.gather(
        *(call for several in calls.values() for call in several),
        malformed,
        link.call(pack(("EXEC",))),
        return_exceptions=True,
    )
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, ServerReply):
            raise answer
    refusals = {name: [call.exception() for call in several] for name, several in calls.items()}
    missing = {name: texts[0] for name, texts in refusals.items() if all(map(is_denied, texts))}
    return list(missing), str(next(iter(missing.values()), ""))


def is_denied(exc: BaseException | None) -> bool:
    return isinstance(exc, ServerReply) and "NOPERM" in str(exc)  # EXEC says more before it


async def memory_policy(link: Link, server: str) -> str:
    """The server's ``maxmemory-policy``; "" if the user may not know it. Raises LinkLost."""
    if server in _denied:
        return ""  # each refusal is an entry in the server's ACL LOG
    try:
        info: bytes = await link.call(pack(("INFO", "memory")))
    except ServerReply as exc:
        if is_denied(exc):
            _denied.add(server)
        return ""
    _, _, rest = info.decode(errors="replace").partition("maxmemory_policy:")
    return rest.partition("\r\n")[0].strip()


def warn_of_eviction(url: object, server: str, policy: str) -> None:
    """Warn once per process and server that it may throw runs away."""
    if policy in ("", "noeviction") or server in _warned:
        return
    _warned.add(server)
    if policy.startswith("volatile"):
        what = "keys that expire, such as replies and the marks that keep a run from being queued twice"
    else:
        what = "any key, queues with their runs among them: they are lost"
    logger.warning(
        "broker %s: the server has maxmemory-policy %s: at its maxmemory it evicts %s. "
        "Set maxmemory-policy to noeviction", url, policy, what,
    )  # fmt: skip
