"""How a training script ends when something is wrong: with a sentence, and with an exit code that says so."""

import os
import sys
from collections.abc import Callable

from cardiodit.errors import CardioDiTError


def run_script(main: Callable[[], None]) -> None:
    try:
        main()
    except (CardioDiTError, OSError) as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"\n{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr, flush=True)  # noqa: PTH119
        sys.exit(1)
