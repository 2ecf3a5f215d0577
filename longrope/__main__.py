"""``python -m longrope`` is the ``longrope`` command."""

import sys

from longrope.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
