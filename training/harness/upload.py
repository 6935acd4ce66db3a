"""The finished model on the Hub, as diffusers' training scripts have it: `--push_to_hub`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
from cardiodit.hub.uploading import create_repository, upload
from cardiodit.training.harness.run import Run


def add_upload_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--push_to_hub", action="store_true", help="upload the pipeline when the run is done")
    parser.add_argument("--hub_model_id", metavar="ORG/NAME", help="where to; default: the run's name, in your account")
    parser.add_argument("--hub_public", action="store_true", help="for everybody to see; otherwise private")


@dataclass(frozen=True)
class Upload:
    """Made before training, so that a missing login is found before the week of computing, not after it."""

    repo: Any  # its address, which knows its name

    @classmethod
    def begin(cls, run: Run, options: argparse.Namespace) -> "Upload":
        made: list[Any] = []

        def create() -> None:
            try:
                made.append(create_repository(options.hub_model_id or options.run_name, not options.hub_public))
            except CardioDiTError as error:
                raise CardioDiTError(
                    f"--push_to_hub: {error} Or train without, and `cardiodit publish` later."
                ) from error

        if options.push_to_hub:
            run.main_first(create)
        return cls(made[0] if made else None)

    def send(self, folder: Path) -> None:
        if self.repo is None:
            return
        upload(self.repo, folder, "Trained with cardiodit")
        print(
            f"Uploaded to {self.repo}. Its card is not complete: `cardiodit card {folder}` tells what is to be stated."
        )
