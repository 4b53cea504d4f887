"""``python -m poolwatch``."""

import sys

from poolwatch.commands.main import main

sys.exit(main())
