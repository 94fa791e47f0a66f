"""The command `memkit`, as `python -m ablations.cli`."""

import sys

from ablations.cli.commands import main

sys.exit(main())
