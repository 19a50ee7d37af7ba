"""Print one line of JSON for each file of the standard library: {"path": ...}."""

import json
import sysconfig
from pathlib import Path

root = Path(sysconfig.get_paths()["stdlib"])
for path in sorted(root.rglob("*.py")):
    if not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts):
        print(json.dumps({"path": str(path)}))
