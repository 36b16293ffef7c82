"""`python -m lichen` is the command `lichen`."""

import sys

from lichen.cli import main

sys.exit(main())
