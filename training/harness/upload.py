"""The finished model on the Hub, as diffusers' training scripts have it: `--push_to_hub`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
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
            from huggingface_hub import HfApi

            name = options.hub_model_id or options.run_name
            try:
                made.append(HfApi().create_repo(name, private=not options.hub_public, exist_ok=True))
            except Exception as error:  # no network, no login, no such organisation: each client version has its own
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise CardioDiTError(
                    f"--push_to_hub: the repository {name} cannot be made ({reason}). Log in (hf auth login), or train "
                    "without and upload the pipeline folder later."
                ) from error

        if options.push_to_hub:
            run.main_first(create)
        return cls(made[0] if made else None)

    def send(self, folder: Path) -> None:
        if self.repo is None:
            return
        from huggingface_hub import HfApi

        HfApi().upload_folder(repo_id=self.repo.repo_id, folder_path=folder, commit_message="Trained with cardiodit")
        print(f"Uploaded to {self.repo}.")
