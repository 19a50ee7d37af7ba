"""Runs of ``python -m fluidfast ...`` without the half second of its imports.

One process a test session imports what every command needs, and then forks: each run is a process of its own, with the
working directory, the environment, the arguments and the files of its caller, and ends as any interpreter does. Only
``sys.modules`` tells it from a process that was started anew: tests of what is imported start one.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PRELOADED = (
    "fluidfast",
    "fluidfast.commands.dead",
    "fluidfast.commands.queue",
    "fluidfast.commands.worker",
    "pydantic.json_schema",
    "pydantic.main",
    "pydantic.types",
    "uvloop",
)
LENGTH = 4


class Warm:
    """The process, from the view of those whose commands it runs. It ends with them."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )

    def run(
        self, arguments: tuple[str, ...], cwd: Path, env: dict[str, str], input: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``python -m fluidfast`` with these arguments to its end, and return what it wrote.

        Raises:
            subprocess.TimeoutExpired: it did not end within ``timeout`` seconds; it was killed.
        """
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": env}).encode()
        answers, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(input or b"")
            given.seek(0)
            with answers, theirs:
                files = [given.fileno(), out.fileno(), err.fileno(), theirs.fileno()]
                socket.send_fds(self._ours, [len(request).to_bytes(LENGTH)], files)
                self._ours.sendall(request)
                theirs.close()
                pid = int.from_bytes(answers.recv(LENGTH))
                answers.settimeout(timeout)
                try:
                    status = answers.recv(LENGTH)
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(arguments), timeout) from None
            out.seek(0)
            err.seek(0)
            code = int.from_bytes(status, signed=True)
            return subprocess.CompletedProcess(list(arguments), code, out.read(), err.read())


def serve(requests: socket.socket) -> None:
    """Fork for each request; returns in the process that is to run the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        head, files, _, _ = socket.recv_fds(requests, LENGTH, 4)
        if not head:
            os._exit(0)
        body = b""
        while len(body) < int.from_bytes(head):
            body += requests.recv(int.from_bytes(head) - len(body))
        if os.fork() == 0:
            requests.close()
            if wait_for_command(socket.socket(fileno=files.pop())):
                os._exit(0)
            break
        for file in files:
            os.close(file)
    request = json.loads(body)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    paths = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [os.getcwd(), *paths]
    sys.argv = ["fluidfast", *request["arguments"]]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]


def wait_for_command(answers: socket.socket) -> bool:
    """Fork once more; the parent tells the caller the child's id and how it ended. Returns whether it is the parent."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (pid := os.fork()) == 0:
        answers.close()
        return False
    answers.sendall(pid.to_bytes(LENGTH))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    answers.sendall(code.to_bytes(LENGTH, signed=True))
    return True


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, which a command does not see
    for name in PRELOADED:
        __import__(name)
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("fluidfast", run_name="__main__", alter_sys=True)
