"""Write the stages' `--help` into `training/help`, so that `cardiodit train STAGE --help` need not import torch.

The options of a stage come from the constructors of its models, whose modules import torch, which takes seconds.
After a change of options, `make help-texts` writes the files again; a test compares them with the parsers.
"""

import io
import os
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module

from cardiodit._util.atomic_io import atomic_file
from cardiodit.commands.train import STAGES, help_file


def help_of(stage: str) -> str:
    """Return what the parser of a stage prints for `--help` on a terminal of 80 columns."""
    script = import_module(f"cardiodit.training.train_{stage}")
    printed = io.StringIO()
    before = sys.argv, dict(os.environ)
    sys.argv = [f"cardiodit train {stage}"]
    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}
    try:
        with redirect_stdout(printed), suppress(SystemExit):
            script.main(["--help"])
    finally:
        sys.argv = before[0]
        os.environ.clear()
        os.environ.update(before[1])
    return printed.getvalue()


def main() -> None:
    for stage in STAGES:
        help_file(stage).parent.mkdir(exist_ok=True)
        with atomic_file(help_file(stage)) as temporary:
            temporary.write_text(help_of(stage))


if __name__ == "__main__":
    main()
