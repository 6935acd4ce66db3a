"""`python -m cardiodit`; `accelerate launch -m cardiodit` runs it in every process."""

import sys

from cardiodit.cli import main

sys.exit(main())
