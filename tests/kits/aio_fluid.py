"""A Python that can import aio-fluid, which needs 3.12: that of FLUIDFAST_AIO_PYTHON, or a new environment."""

import os
import shutil
import subprocess

import pytest


def make_aio_python(places: pytest.TempPathFactory, *requirements: str) -> str:
    """Return the path of a Python that has ``requirements``; skip the test where none can be made."""
    if given := os.environ.get("FLUIDFAST_AIO_PYTHON"):
        return given
    base = next((found for name in ("python3.13", "python3.12") if (found := shutil.which(name))), None)
    if base is None:
        pytest.skip("aio-fluid needs Python 3.12 or newer: set FLUIDFAST_AIO_PYTHON")
    home = places.mktemp("aio")
    made = home / "venv" / "bin" / "python"
    for command in ([base, "-m", "venv", str(home / "venv")], [str(made), "-m", "pip", "install", "-q", *requirements]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"no environment for aio-fluid: {done.stderr[-300:]}")
    return str(made)
