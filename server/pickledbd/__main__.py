"""`python -m pickledbd`."""

import sys

from pickledbd.cli import main

sys.exit(main())
