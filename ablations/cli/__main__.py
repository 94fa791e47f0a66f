"""The command `memkit`, as `python -m ablations.cli`."""

import sys

from ablations.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
