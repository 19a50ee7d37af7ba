"""Fuzzing of all that reads foreign bytes: payloads, answers, dead letters, infos of tasks, crontab fields.

    python tests/fuzz/fuzz.py [--seconds 600] [--seed N] [TARGET...]

Inputs are made from the corpus (``corpus/TARGET/``, and the golden payloads) by changing tokens of JSON or MessagePack.
What a decoder makes of one is checked against the slow model of the wire, against its other ways to read the same, and
against what it makes of it once it is written again. It may refuse with an error of ours; anything else is a finding:
it is minimised, stays in the corpus, and the tests replay it from then on.

An input that kills the process stays in the corpus too: it stands in a file there while it is tried.
The C compilers of our builds leave no coverage in the extensions, so there is none to be guided by.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import itertools
import json
import os
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "wire")]  # as pytest has it

import msgspec
from models.codec_model import FIELDS, Refused, further, read_json, read_msgpack, unpack
from test_golden import GOLDEN, TASKS

from fluidfast import TaskRun, crontab
from fluidfast.brokers.redis.inspect import decode_info
from fluidfast.core.params import non_finite_field
from fluidfast.errors import ParamsError, PayloadError, TaskParamsError, UnknownTaskError
from fluidfast.manage.dead import DeadLetter
from fluidfast.wire._codec import Codec, encode_json
from fluidfast.wire.peek import afresh, is_packed

CORPUS = Path(__file__).with_name("corpus")
MAX_INPUT = 1 << 20
MAX_GROWTH = 64 << 20
"""Bytes that one input may add to the most memory that the process has had."""
MAX_SECONDS = 2.0
"""Processor time that one input may take."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNTYPED = ("plain", 'tâche "\\" 仕事')
DEFAULTS = {name: str(a_task.priority) for name, a_task in TASKS.items()}
REFUSALS = (PayloadError, UnknownTaskError, TaskParamsError)
CODEC, PACKER = Codec(dict(TASKS)), Codec(dict(TASKS), msgpack=True)
GOOD = b'{"id":"7","task":"plain","priority":"medium","state":"queued","queued":1764000000.123456,"params":{}}'


class Target(NamedTuple):
    """``check`` raises what is wrong with an input. ``tokens`` cuts one up, ``nasty`` are tokens to put in, and
    ``nests`` what goes around one to nest it."""

    check: Callable[[bytes], None]
    tokens: Callable[[bytes], list[bytes]]
    nasty: list[bytes]
    nests: list[tuple[bytes, bytes]]


class Finding(NamedTuple):
    payload: bytes
    error: BaseException


# --- what has to hold -----------------------------------------------------------------------------


def micros(moment: datetime | None) -> int | None:
    """Microseconds since the epoch; None for a time that was just taken from the clock, too."""
    if moment is None or abs(moment - datetime.now(UTC)) < timedelta(minutes=10):
        return None
    return (moment - EPOCH) // timedelta(microseconds=1)


def read(decode: Callable[[], TaskRun[Any, Any]]) -> tuple[TaskRun[Any, Any] | None, dict[str, Any] | None]:
    """A run and its record, or None for both where it is refused. An id that the reader made up is None in it."""
    try:
        run, again = decode(), decode()
    except REFUSALS:
        return None, None
    return run, record_of(run, "" if run.id != again.id else run.id)


def record_of(run: TaskRun[Any, Any], identity: str) -> dict[str, Any]:
    return {
        "id": identity or None,
        "task": run.name,
        "priority": str(run.priority),
        "params": run.params,
        "queued": micros(run.queued),
        "execute_after": micros(run.execute_after),
        "rate_limit_attempt": run.rate_limit_attempt,
        "retry_attempt": run.retry_attempt,
        "from_run_id": run.from_run_id,
        "root_run_id": run.root_run_id,
        "extra": {name: further(value) for name, value in (run.extra or {}).items()},
    }


def plainly(value: Any) -> Any:
    """As it is shown, so that True is not 1, and 1 not 1.0."""
    if isinstance(value, dict):
        return {repr(name): plainly(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plainly(item) for item in value]
    return repr(str(value) if isinstance(value, str) else value)


def check_same(found: dict[str, Any] | None, expected: dict[str, Any] | None, what: str, drift: int = 0) -> None:
    """``drift``: microseconds by which times may differ: a double does not hold every one of the far future."""
    if found is None or expected is None:
        assert found is expected, f"{what}: {found} is not {expected}"
        return
    for name, value in expected.items():
        other = found[name]
        if drift and name in ("queued", "execute_after") and value is not None and other is not None:
            assert abs(value - other) <= drift, f"{what}: {name} is {other}, not {value}"
        elif name == "params" and not isinstance(value, dict):
            assert other == value, f"{what}: params are {other!r}, not {value!r}"
        else:
            assert plainly(other) == plainly(value), f"{what}: {name} is {other!r}, not {value!r}"


def is_same_in_json(params: Any) -> bool:
    """Whether params of no model have values and keys as JSON has them: no bytes, times, numbers for names."""
    if isinstance(params, dict):
        return all(type(name) is str and is_same_in_json(value) for name, value in params.items())
    if isinstance(params, list):
        return all(map(is_same_in_json, params))
    return not isinstance(params, bytes | datetime)


def has_broken_text(payload: bytes) -> bool:
    """Whether text in it is not UTF-8, or has half of a surrogate pair.

    That is refused where it is looked at: not in what a model does not have, nor in the first of two equal keys.
    """
    try:
        if is_packed(payload):
            unpack(payload, 0)
        else:
            json.dumps(json.loads(payload, object_pairs_hook=list), ensure_ascii=False).encode()
    except UnicodeError:
        return True
    except (Refused, IndexError, TypeError, ValueError, RecursionError):
        pass
    return False


def has_equal_keys(payload: bytes) -> bool:
    """Whether JSON has a key twice in an object: the codec may mind what is wrong with the first, the model cannot."""
    found: list[bool] = []
    try:
        json.loads(payload, object_pairs_hook=lambda pairs: found.append(len(dict(pairs)) < len(pairs)), parse_int=str)
    except (ValueError, RecursionError):
        pass
    return any(found)


def modelled(model: Callable[..., dict[str, Any]], payload: bytes) -> dict[str, Any] | None:
    try:
        record = model(payload, DEFAULTS)
    except Refused:
        return None
    if record["queued"] is not None:
        record["queued"] = micros(EPOCH + timedelta(microseconds=record["queued"]))
    return record


def check_payload(payload: bytes) -> None:
    """A payload of either form, as a consumer reads it."""
    run, found = read(lambda: CODEC.decode(payload, None))
    if run is not None and run.name not in UNTYPED and non_finite_field(run.params) is not None:
        return  # pydantic reads NaN and 1e999, which can be run, but not written again
    packed = is_packed(payload)
    general = CODEC.decode_packed if packed else CODEC.decode_object
    _, slowly = read(lambda: general(payload, None, None))
    broken = has_broken_text(payload)
    if found is None or slowly is not None or not broken:
        check_same(found, slowly, "the fast way and the general way differ")
    expected = modelled(read_msgpack if packed else read_json, payload)
    if packed:
        incomparable = broken or (found is not None and not is_same_in_json(found["params"]))
    else:
        incomparable = broken or (found is None and has_equal_keys(payload))
    if incomparable:
        pass
    elif expected is not None and expected["task"] in UNTYPED and (found is not None or not packed):
        check_same(found, expected, "not as the model reads it")
    elif found is not None:
        assert found["task"] not in UNTYPED, f"read, but the model refuses it: {found}"

    many = CODEC.decode_many([GOOD, payload, GOOD, payload], None)
    assert [isinstance(one, TaskRun) for one in many] == [True, run is not None] * 2, f"decode_many: {many}"
    if run is not None and found is not None and non_finite_field(run.params) is not None:
        again = CODEC.decode(CODEC.encode(run._again(0, False)), None)
        assert plainly(again.params) == plainly(run.params), "tried again with other params"
    elif run is not None and found is not None:
        if found["id"] is None:
            found["id"] = run.id
        for codec in (CODEC, PACKER):
            if packed and not is_same_in_json(found["params"]):
                codec.encode(run)  # to other values: as text
                continue
            try:
                written = codec.encode(run)
            except ParamsError:
                assert codec is PACKER, "read, but cannot be written"  # JSON has more numbers
                continue
            _, again = read(lambda: CODEC.decode(written, None))  # noqa: B023
            check_same(again, found, f"written again as {written!r}", drift=16)


def check_finished(payload: bytes) -> None:
    """A payload of a run that is over, as the one who waits for it reads it."""
    try:
        run = CODEC.decode_finished(payload, None)
    except (PayloadError, UnknownTaskError):
        return
    if run.task.name not in UNTYPED:
        return
    try:
        written = encode_json(run)
    except ParamsError:  # NaN, which aio-fluid writes
        assert b"NaN" in payload or b"Infinity" in payload
        return
    ended = CODEC.decode_finished(written, None)
    for name in ("id", "state", "priority", "params"):
        assert getattr(ended, name) == getattr(run, name), name
    for name in ("queued", "start", "end"):
        before, after = getattr(run, name), getattr(ended, name)
        assert before == after or (before and after and abs(before - after) <= timedelta(microseconds=16)), (
            f"{name}: {after} is not {before}"
        )


def check_dead(entry: bytes) -> None:
    """A dead letter, of which neither header nor payload has to be anything: it is shown, and can be sent again."""
    header, _, payload = entry.partition(b"\n")
    letter = DeadLetter.read(header.decode("utf-8", "replace"), payload)
    for name in ("id", "at", "reason", "task", "run_id", "priority", "params", "attempts"):
        getattr(letter, name)
    _, found = read(lambda: CODEC.decode(payload, None))
    _, again = read(lambda: CODEC.decode(afresh(payload), None))
    if found is not None:
        found |= {"execute_after": None, "retry_attempt": 0, "rate_limit_attempt": 0}
        check_same(again, found, f"sent again as {afresh(payload)!r}")


def check_info(text: bytes) -> None:
    """What the broker keeps about a task, ``name=value`` a line: what cannot be read is passed over."""
    fields = dict(line.partition(b"=")[::2] for line in text.split(b"\n"))
    decode_info(TASKS["plain"], fields)


def check_crontab(text: bytes) -> None:
    """Five fields, apart by spaces: refused, or due when it says that it is due next."""
    fields = text.decode("utf-8", "replace").split(" ")[:5]
    try:
        schedule = crontab(*fields)
    except ValueError as exc:
        if not str(exc).startswith("crontab: "):
            raise
        return
    try:
        due = schedule.next_run(datetime(2026, 2, 27, 23, 58, 30, tzinfo=UTC))
    except ValueError as exc:
        if "does not come after" not in str(exc):
            raise
        return
    run = schedule(due)
    assert run is not None, f"{schedule} is not due at {due}"
    assert run.datetime == due, f"{schedule} is due at {run}, not at {due}"


# --- tokens ---------------------------------------------------------------------------------------

WORD = re.compile(rb'"(?:\\.|[^"\\])*"|[-+.\w]+|\s+|[^\w\s]', re.S)
SIZES = {
    **dict.fromkeys((0xCC, 0xD0), 2),
    **dict.fromkeys((0xCD, 0xD1, 0xDC, 0xDE, 0xD4), 3),
    **dict.fromkeys((0xCA, 0xCE, 0xD2, 0xDD, 0xDF), 5),
    **dict.fromkeys((0xCB, 0xCF, 0xD3), 9),
    0xD5: 4,
    0xD6: 6,
    0xD7: 10,
    0xD8: 18,
}
"""First byte -> length of a token of MessagePack that says no length itself; one byte if it is not here."""
LENGTHS = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1), 0xD9: (1, 0)}
LENGTHS |= {0xDA: (2, 0), 0xDB: (4, 0)}
"""First byte -> bytes of the length that follows it, and bytes between that and what it counts."""


def words(text: bytes) -> list[bytes]:
    return WORD.findall(text)


def packed_tokens(payload: bytes) -> list[bytes]:
    found = []
    at = 0
    while at < len(payload):
        first = payload[at]
        size = SIZES.get(first, 1)
        if 0xA0 <= first <= 0xBF:
            size += first & 31
        elif first in LENGTHS:
            digits, more = LENGTHS[first]
            size += digits + more + int.from_bytes(payload[at + 1 : at + 1 + digits], "big")
        found.append(payload[at : at + size])
        at += size
    return found


TIMES = [
    "2025-11-24T16:00:00Z", "2025-11-24 16:00:00.123456789", "2025-11-24", "20251124T160000", "2025-W48-1", "24:00",
    "9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00+23:59", "2025-11-24T16:00:00+00:00:00.000001",
]  # fmt: skip
TEXTS = [*FIELDS, *TASKS, *TIMES, "", "7", "high", "low", "running", "success", "0" * 32, "F" * 32, "nul\0", "x" * 5000]
NUMBERS = [
    0, 1, -1, 2, 3, 7, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63,
    2**64 - 1, -32, -33, -(2**31), -(2**31) - 1, -(2**63), 1764000000, 1764000000000, 253402300799, 253402300800,
    -62135596800, -62135596801, 0.0, -0.0, 0.5, 1e-7, 5e-324, 1.7976931348623157e308, 1764000000.123456,
    253402300799.999999, 8589934592.000001, 1e12, 1e300,
]  # fmt: skip
NASTY_JSON = [
    *(json.dumps(value).encode() for value in (*TEXTS, *NUMBERS)),
    *(json.dumps(text, ensure_ascii=False).encode() for text in ("é", "仕", "😀", "\u2028\x7f")),
    *b"null true false NaN Infinity -Infinity nan -0 +1 01 .5 1. 1e5 1E+5 1e999 -1e999 1e-999 1e 0x10 1_0".split(),
    *(b'"\\ud800" "\\udc00\\ud800" "\\ud83d\\ude00" "\\u0000" "\\u00e9" "\\/" "\\x" "\\" "\\u12"').split(),
    *b'[] {} {"a":1,"a":2} {"":{}} {"a":null} [1,] {,} {"a"} : , [ ] { } "'.split(),
    *(str(2**64).encode(), str(-(2**63) - 1).encode(), b"9" * 400, b"9" * 5000, b"0." + b"3" * 400, b"1" + b"0" * 308),
    *(b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"', b'"\x01"', b'"\n"', b"\xef\xbb\xbf", b"\0"),
    *(
        b'"retry_attempt":1,',
        b'"task":"plain",',
        b'"id":"8",',
        b'"params":null,',
        b'"further":[1,"x"],',
        b"//",
        b"/**/",
    ),
]
# nothing's code, NaN and infinities, numbers longer than they have to be, binary of about an id's length, extensions
# and times, broken text, further keys, and maps with the same key twice or with keys that are no text
PACKED_ODDITIES = """
    c1 ca7fc00000 caff800000 cb7ff0000000000000 cb7ff8000000000000 cc01 d001 cd0001 d1ffff ce00000001 d90137
    da000137 c400 c41000000000000000000000000000000000 c40f000000000000000000000000000000
    c4110000000000000000000000000000000000 c5001000000000000000000000000000000000 d40000 d6ff69248000
    d7ffffffffffffffffff c70cff000000000000000000000000 c70007 a1ff a3eda080 a2c080 81a178c4035b315d
    81a26964c40131 81a178c4017b 82a16101a16102 810102 81c0c0 819001 818001 81c4016101
"""
NASTY_PACKED = [
    *(msgspec.msgpack.encode(value) for value in (*TEXTS, *NUMBERS, None, True, False, [], {}, {"a": 1}, [[], [1]])),
    *map(bytes.fromhex, PACKED_ODDITIES.split()),
    *(
        bytes((first,)) + count
        for first in b"\xdd\xdf\xdb\xc6\xc9"
        for count in (b"\xff" * 4, b"\0\0\0\1", b"\1\0\0\0")
    ),
    *(bytes((first,)) for first in b"\x80\x81\x8f\x90\x91\x94\x95\x96\x9e\x9f\xa0\xbf\xdc\xde"),
]
NASTY_CRON = (
    "* */2 */0 1-5 5-1 1-5/2 0-59/7 */9999999999 31 30 29 2 7 0 60 -1 - / , 1,2 ² ٣ 1e3 0x1 00 *-* */*".encode().split()
)
NASTY_CRON += [b"9" * 5000, b"", b" ", b"1,", b",1", b"*" * 50, b"1-2-3", b"1/2", b"1-31/1/1", b"\xff"]

JSON_NESTS = [(b"[", b"]"), (b'{"a":', b"}"), (b"[1,", b"]"), (b"[", b""), (b"", b"}")]
PACKED_NESTS = [(b"\x91", b""), (b"\x81\xa1a", b""), (b"\xdc\x00\x01", b""), (b"\xdf\x00\x00\x00\x01\xa1a", b"")]
TARGETS = {
    "json": Target(check_payload, words, NASTY_JSON, JSON_NESTS),
    "msgpack": Target(check_payload, packed_tokens, NASTY_PACKED, PACKED_NESTS),
    "finished": Target(check_finished, words, NASTY_JSON, JSON_NESTS),
    "dead": Target(check_dead, words, [*NASTY_JSON, *NASTY_PACKED, *NASTY_CRON], JSON_NESTS),
    "info": Target(check_info, words, NASTY_JSON, JSON_NESTS),
    "crontab": Target(check_crontab, words, NASTY_CRON, [(b"", b",1")]),
}


def seeds_of(name: str) -> list[bytes]:
    """The corpus of a target and the golden payloads that fit it, in an order that is the same everywhere."""
    found = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    header = b"1764000000123 no such task\n" if name == "dead" else b""
    for path in sorted(GOLDEN.iterdir()):
        for line in map(json.loads, path.read_text("ascii").splitlines()):
            if name in ("json", "finished", "dead"):
                found.append(header + (line.get("json") or line["payload"]).encode())
            if name in ("msgpack", "dead") and "msgpack" in line:
                found.append(header + bytes.fromhex(line["msgpack"]))
    return found


# --- the loop -------------------------------------------------------------------------------------


def changed(draw: random.Random, target: Target, seeds: list[bytes]) -> bytes:
    """An input: one of the seeds with a few of its tokens changed."""
    tokens = list(target.tokens(draw.choice(seeds)))
    for _ in range(draw.choice((1, 1, 2, 3, 5))):
        at = draw.randrange(len(tokens) + 1)
        end = at + draw.choice((0, 1, 1, 1, 2, 5))
        kind = draw.randrange(8)
        if kind == 0:
            tokens[at:end] = [draw.choice(target.nasty)]
        elif kind == 1:
            tokens[at : at + 1] = [draw.choice(target.nasty)]
        elif kind == 2:
            del tokens[at:end]
        elif kind == 3:  # the same once more, somewhere
            to = draw.randrange(len(tokens) + 1)
            tokens[to:to] = tokens[at:end]
        elif kind == 4:  # a piece of another
            other = target.tokens(draw.choice(seeds))
            start = draw.randrange(len(other) + 1)
            tokens[at:end] = other[start : start + draw.choice((1, 1, 2, 7, 30))]
        elif kind == 5:
            levels = draw.choice((1, 2, 62, 63, 64, 65, 66, 200, 3000))
            left, right = draw.choice(target.nests)
            tokens[at : at + 1] = [left * levels, *tokens[at : at + 1], right * levels]
        elif kind == 6 and at < len(tokens):
            token = bytearray(tokens[at])
            place = draw.randrange(len(token) + 1)
            token[place : place + draw.choice((0, 1, 1))] = draw.randbytes(draw.choice((0, 1, 1, 2)))
            tokens[at] = bytes(token)
        elif kind == 7 and draw.random() < 0.3:
            whole = b"".join(tokens)
            return whole[: draw.randrange(len(whole) + 1)]
    return b"".join(tokens)[:MAX_INPUT]


def most_memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def wrong_with(target: Target, payload: bytes) -> BaseException | None:
    """What is wrong with what a decoder makes of an input, None if nothing is."""
    grown, used = most_memory(), time.process_time()
    try:
        target.check(payload)
        used = time.process_time() - used
        grown = most_memory() - grown
        assert used < MAX_SECONDS, f"took {used:.1f} s"
        assert grown < MAX_GROWTH, f"took {grown} bytes"
    except (Exception, RecursionError) as exc:
        return exc
    return None


def smallest(target: Target, finding: Finding) -> Finding:
    """The same finding from fewer tokens, then from fewer bytes."""
    for cut in (target.tokens, lambda payload: [payload[i : i + 1] for i in range(len(payload))]):
        parts = cut(finding.payload)
        size = len(parts) // 2
        while size and len(finding.payload) < 1 << 16:
            at = 0
            while at < len(parts):
                fewer = parts[:at] + parts[at + size :]
                error = wrong_with(target, b"".join(fewer))
                if type(error) is type(finding.error):
                    parts, finding = fewer, Finding(b"".join(fewer), error)
                else:
                    at += size
            size //= 2
    return finding


def fuzz(name: str, seed: int, seconds: float, note: Callable[[bytes], object] = len) -> tuple[int, Finding | None]:
    """Tries inputs until the time is up or one is a finding: how many, and the finding, minimised.

    ``note`` is given each input before it is tried.
    """
    target, seeds = TARGETS[name], seeds_of(name)
    draw = random.Random(f"{name} {seed}")
    tried, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        payload = changed(draw, target, seeds)
        note(payload)
        tried += 1
        error = wrong_with(target, payload)
        if error is not None:
            return tried, smallest(target, Finding(payload, error))
    return tried, None


@contextlib.contextmanager
def kept_if_it_dies(path: Path) -> Iterator[Callable[[bytes], object]]:
    """Gives a function that notes an input in a file, which stays if the process dies of it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def note(payload: bytes) -> None:
        os.pwrite(file, payload, 0)
        os.ftruncate(file, len(payload))

    try:
        yield note
    finally:
        os.close(file)
        path.unlink()


def campaign(name: str, seed: int, seconds: float) -> set[str]:
    """Replays the corpus of a target, fuzzes it for so long, and puts what is found into the corpus: what it is."""
    found: set[str] = set()
    folder = CORPUS / name
    for payload in seeds_of(name):
        if (error := wrong_with(TARGETS[name], payload)) is not None:
            found.add(f"{type(error).__name__}: {error}"[:70])
            print(f"{name}: in the corpus, {payload[:200]!r}: {error!r}")
    tried, started = 0, time.monotonic()
    with kept_if_it_dies(folder / f"died-of-seed-{seed}") as note:
        for part in itertools.count():
            left = seconds - (time.monotonic() - started)
            count, finding = fuzz(name, seed + part * 1_000_000, left, note)
            tried += count
            if finding is None:
                break
            what = f"{type(finding.error).__name__}: {finding.error}"
            if what.partition("{")[0][:70] not in found:
                found.add(what.partition("{")[0][:70])
                path = folder / f"found-{hashlib.sha1(finding.payload, usedforsecurity=False).hexdigest()[:10]}"
                path.write_bytes(finding.payload)
                print(f"{name}: {path.name}, {finding.payload[:200]!r}: {what[:1000]}")
    print(f"{name}: {tried} inputs in {time.monotonic() - started:.0f} s of seed {seed}, {len(found)} findings")
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: each")
    parser.add_argument("--seconds", type=float, default=600, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    faulthandler.enable()
    found = [campaign(name, options.seed, options.seconds) for name in options.targets or TARGETS]
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
