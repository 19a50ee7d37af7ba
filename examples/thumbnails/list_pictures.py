"""Print one line of JSON for each picture in a folder: python list_pictures.py FOLDER"""

import json
import sys
from pathlib import Path

for path in sorted(Path(sys.argv[1]).resolve().iterdir()):
    if path.suffix in {".png", ".jpg", ".jpeg"} and not path.name.endswith(".thumb.png"):
        print(json.dumps({"path": str(path)}))
