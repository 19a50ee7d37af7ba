"""``python -m fluidfast``: see ``fluidfast.commands``."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
