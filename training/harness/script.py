"""How a training script ends when something is wrong: with a sentence, and with an exit code that says so."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cardiodit.errors import CardioDiTError


def run_script(main: Callable[[], None]) -> None:
    try:
        main()
    except (CardioDiTError, OSError) as error:
        if int(os.environ.get("RANK", 0)) > 0:
            time.sleep(10)  # the first process says the same, and its end is ours; if it lives, only we know
        print(f"\n{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
