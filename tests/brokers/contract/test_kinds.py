"""The contract is run on every kind of broker."""

import re
import subprocess
import sys
from pathlib import Path


def test_on_memory_on_a_server_and_sharded() -> None:
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", "-p", "no:cacheprovider")
    found = subprocess.run((*command, Path(__file__).parent), check=True, capture_output=True, text=True).stdout
    kinds = set(re.findall(r"::\S+\[([a-z0-9]+(?:-(?:sharded|declared))?)[-\]]", found))
    servers = {kind for kind in kinds if "-" not in kind} - {"memory"}
    assert servers
    assert kinds == {"memory", *servers, *(f"{s}-sharded" for s in servers), *(f"{s}-declared" for s in servers)}
