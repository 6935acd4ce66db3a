"""The folder of a cohort's latents: each has a file of its own, or lies in a shard with those of other images."""

import re
from collections.abc import Sequence
from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.manifest import read_table
from cardiodit.latents.dataset import COLUMN
from cardiodit.latents.file import (
    SUFFIX,
    DamagedLatentError,
    identity_of,
    is_in_shard,
    read_headers,
    read_latent,
    write_latent,
    write_shard,
)

MANIFEST, MASK_FOLDER, SHARD = "manifest.csv", "masks", "shard-"
SHARDED_ABOVE, SHARD_SIZE = 10_000, 256  # images of a cohort; latents in a shard, 1.6 GiB at the published size
TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-((shard-)?[0-9a-f]{20}\.(safetensors|nii\.gz)|manifest\.csv)")


class LatentFolder:
    """Where latents are, and where they go.

    A latent is first written to a file of its own, so that an interrupted run loses none; when those of a shard are
    complete, they move into it. The name of a shard depends on its latents, so that several processes, each with its
    own shards, and later runs agree on it.

    Args:
        path: the folder, which need not exist yet.
        images: number of images of the cohort.
        shard_size: number of latents in a file; 1 writes a file for each. Default: as the folder's manifest has them;
            in a new folder `SHARD_SIZE` for cohorts of more than `SHARDED_ABOVE` images, otherwise 1.
    """

    def __init__(self, path: Path, images: int, shard_size: int | None = None) -> None:
        if shard_size is not None and shard_size < 1:
            raise CardioDiTError(f"shard_size={shard_size} must be at least 1.")
        self.path, self.manifest = path, path / MANIFEST
        rows = [row for _, row in read_table(self.manifest, ())] if self.manifest.exists() else []
        if any(COLUMN not in row or "image" in row for row in rows):
            raise CardioDiTError(
                f"{self.manifest} is not a manifest of latents and would be overwritten. Choose another output folder."
            )
        listed = [Path(row[COLUMN]) for row in rows]
        self.shard_size = shard_size or _size_of(listed) or (SHARD_SIZE if images > SHARDED_ABOVE else 1)
        self._in_shards: dict[str, Path] = {}  # where each latent lies
        damaged = set()
        for shard in sorted(path.glob(f"{SHARD}*{SUFFIX}")):
            try:
                self._in_shards |= {name: shard / name for name in read_headers(shard)}
            except DamagedLatentError:
                damaged.add(shard.name)
        self.lost = {place.name for place in listed if place.parent.name in damaged}

    def groups(self, images: int) -> list[range]:
        """Return the rows whose latents lie in one file."""
        return [range(first, min(first + self.shard_size, images)) for first in range(0, images, self.shard_size)]

    def file(self, name: str) -> Path:
        """Return the path of a latent's own file."""
        return self.path / f"{name}{SUFFIX}"

    def place(self, name: str) -> Path | None:
        """Return where a latent lies: in its own file or, if there is none, in a shard; None if it is nowhere."""
        return self.file(name) if self.file(name).exists() else self._in_shards.get(name)

    def store(self, names: Sequence[str]) -> list[str]:
        """Move the latents of a group to where they belong, and return their paths relative to the folder."""
        if self.shard_size == 1:
            for name in names:
                if (place := self.place(name)) is not None and is_in_shard(place):
                    header, latents = read_latent(place)
                    write_latent(self.file(name), latents, header)
            return [self.file(name).name for name in names]
        names_once = list(dict.fromkeys(names))  # the same image twice is reported at the end
        shard = self.path / f"{SHARD}{identity_of(names_once)[:20]}{SUFFIX}"
        places = [self.place(name) or self.file(name) for name in names_once]
        if any(place.parent != shard for place in places):
            write_shard(shard, places)
        for name in names_once:
            self.file(name).unlink(missing_ok=True)
            self._in_shards[name] = shard / name
        return [f"{shard.name}/{name}" for name in names]

    def remove_temporary(self) -> list[str]:
        """Remove what interrupted runs left half-written, and return the names."""
        removed = []
        for path in [*self.path.iterdir(), *self.path.glob(f"{MASK_FOLDER}/.*")]:
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
                removed.append(path.name)
        return removed

    def other_files(self, places: Sequence[str]) -> list[str]:
        """Return the names of latent files that hold none of these latents."""
        needed = {Path(place).parts[0] for place in places}
        return sorted({path.name for path in self.path.glob(f"[!.]*{SUFFIX}")} - needed)


def _size_of(places: Sequence[Path]) -> int | None:
    """Return the number of latents in a file, as a manifest lists them; None without a manifest."""
    if not places:
        return None
    if not is_in_shard(places[0]):
        return 1
    first = sum(place.parent == places[0].parent for place in places)
    return first if first < len(places) else max(first, SHARD_SIZE)
