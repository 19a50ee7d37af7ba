"""The peers' virtual environments, under ``bench/.venvs``: made and filled when they are not there."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from .common import BenchError
from .peers import Peer

VENVS = Path(__file__).resolve().parent / ".venvs"
INSTALL_SECONDS = 300


@cache
def version_of(python: str) -> tuple[int, int] | None:
    """Its version, or None if it does not run (pyenv's shims of versions that are not chosen do not)."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=20)
        major, minor = done.stdout.split()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return int(major), int(minor)


@cache
def find_python(lowest: tuple[int, int]) -> str:
    """This Python if it will do, else the lowest that will: on the PATH, or of pyenv.

    Raises:
        BenchError: there is none.
    """
    if sys.version_info[:2] >= lowest:
        return getattr(sys, "_base_executable", sys.executable)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(lowest[1], lowest[1] + 5):
        name = f"python{lowest[0]}.{minor}"
        candidates = [shutil.which(name), *map(str, sorted(root.glob(f"{lowest[0]}.{minor}.*/bin/{name}")))]
        for candidate in candidates:
            if candidate and version_of(candidate) == (lowest[0], minor):
                return candidate
    raise BenchError(f"needs Python {lowest[0]}.{lowest[1]} or newer, and none was found")


def ensure(peer: Peer) -> str:
    """The Python of a peer's environment, which is made if it is missing or was made for something else.

    Raises:
        BenchError: it cannot be; says why.
    """
    python = find_python(peer.python)
    directory = VENVS / peer.name
    inside = directory / "bin" / "python"
    stamp = directory / "installed.txt"
    wanted = "\n".join([f"python {version_of(python)}", *peer.packages, ""])
    if inside.exists() and stamp.exists() and stamp.read_text() == wanted:
        return str(inside)
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(exist_ok=True)
    try:
        for command in (
            [python, "-m", "venv", str(directory)],
            [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages],
        ):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=INSTALL_SECONDS, stdin=subprocess.DEVNULL
            )
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                raise BenchError(f"cannot be installed: {(errors or done.stderr.splitlines() or ['?'])[-1][:300]}")
    except subprocess.TimeoutExpired:
        raise BenchError(f"cannot be installed within {INSTALL_SECONDS} s") from None
    stamp.write_text(wanted)
    return str(inside)
