"""Commands in tests: real subprocesses of this interpreter, and an application for them to import."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import fluidfast

from .warm import Warm

ROOT = Path(fluidfast.__file__).parents[1]
COMMAND = (sys.executable, "-m", "fluidfast")
DEADLINE_SECONDS = 30.0


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of fluidfast, with ``variables``. PYTHONPATH is added to."""
    ours = ("FLUID_", "REDIS_", "LOG_LEVEL", "TASK_MANAGER_SPAWN", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = [variables.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}


def run(
    *arguments: str,
    cwd: Path,
    input: bytes | None = None,
    program: tuple[str, ...] = COMMAND,
    timeout: float = 60,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    env = environment(**variables)
    if program is COMMAND and not any(name.startswith("PYTHON") for name in variables):
        done = warm().run(arguments, cwd, env, input, timeout)
    else:
        done = subprocess.run(
            [*program, *arguments],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            timeout=timeout,
        )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@functools.cache
def warm() -> Warm:
    """The process of this session that runs commands."""
    return Warm()


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Look at a condition until it is true; gives what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)
    return found


class Running:
    """A command that runs beside the test: ``with Running(...) as process``. Its output goes to files."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        program: tuple[str, ...] = COMMAND,
        **variables: str,
    ) -> None:
        self.name = f"{arguments[0] if program is COMMAND else 'program'}-{time.monotonic_ns()}"
        self.out = cwd / f"{self.name}.out"
        self.err = cwd / f"{self.name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*program, *arguments], cwd=cwd, env=environment(**variables), stdin=stdin, stdout=out, stderr=err
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_for(self, text: str) -> None:
        """Until it has written this."""

        def written() -> bool:
            if text in self.stdout or text in self.stderr:
                return True
            assert self.process.poll() is None, f"ended with {self.process.poll()}: {self.stdout}{self.stderr}"
            return False

        until(written, f"{text!r} in what {self.name} writes")

    def end(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for its end; gives the exit code."""
        return self.process.wait(seconds)

    def children(self) -> list[int]:
        """Ids of the processes that it has started."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = (line.split() for line in listed.splitlines())
        return [int(pid) for pid, parent in pairs if int(parent) == self.process.pid]
