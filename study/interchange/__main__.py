"""`python -m study.interchange`."""

import sys

from study.interchange.command import main

sys.exit(main())
