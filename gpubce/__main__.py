"""``python -m gpubce`` is the command ``gpubce``."""

import sys

from gpubce.cli import main

if __name__ == "__main__":
    sys.exit(main())
