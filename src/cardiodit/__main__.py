"""`python -m cardiodit`, which `accelerate launch -m cardiodit` runs in every process."""

import sys

from cardiodit.cli import main

sys.exit(main())
