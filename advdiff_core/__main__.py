"""`python -m advdiff_core`: the command line, for launchers such as torchrun."""

import sys

from advdiff_core.cli import main

sys.exit(main())
