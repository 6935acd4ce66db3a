"""Latents in shards: the same as in files of their own, whatever interrupts, damages or rearranges them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cardiodit import CardioDiTError, VQModel4D
from cardiodit.cli import main
from cardiodit.imaging.manifest import read_table, write_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents import Counts, LatentCohort, encode_cohort, encoder, folder, identity_of_vae, read_latent

from ..conftest import begin_two


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of five hearts that no test changes."""
    return write_cohort(tmp_path_factory.mktemp("hearts") / "five", num=5, size=(32, 32, 3, 8))


@pytest.fixture
def sharded(vae: VQModel4D, hearts: Path, tmp_path: Path) -> Path:
    """The manifest of the hearts' latents, in shards of two, two and one."""
    encode(hearts, vae, tmp_path / "latents", shard_size=2)
    return tmp_path / "latents" / "manifest.csv"


def encode(manifest: Path, vae: Any, folder: Path, **settings: Any) -> Counts:
    return encode_cohort(manifest, vae, folder, **{"report": lambda _: None, **settings})


def contents(manifest: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in manifest.parent.iterdir() if not path.match("energy*.jsonl")}


def places(manifest: Path) -> list[Path]:
    return [manifest.parent / row["latent"] for _, row in read_table(manifest, ())]


def test_shards_hold_what_single_files_hold(sharded: Path, vae: VQModel4D, hearts: Path, tmp_path: Path) -> None:
    assert [path.suffix for path in sorted(sharded.parent.iterdir())] == [".csv", *[".safetensors"] * 3]
    encode(hearts, vae, tmp_path / "single")
    single, packed = (LatentCohort.open(path) for path in (tmp_path / "single" / "manifest.csv", sharded))
    assert packed.identity == single.identity and packed.headers == single.headers
    assert [case.subject for case in packed.cases] == [case.subject for case in single.cases]
    for index in range(5):
        assert torch.equal(packed[index], single[index])


def test_other_programs_read_a_shard(sharded: Path) -> None:
    place = places(sharded)[1]
    with safe_open(place.parent, "pt") as file:
        assert sorted(file.keys()) == sorted(path.name for path in places(sharded)[:2])
        assert torch.equal(file.get_tensor(place.name), read_latent(place)[1])


def test_a_second_run_keeps_everything(sharded: Path, vae: VQModel4D, hearts: Path) -> None:
    before = contents(sharded)
    assert encode(hearts, vae, sharded.parent) == Counts(kept=5)  # the folder's manifest shows its form
    assert contents(sharded) == before


def test_an_interrupted_run_loses_nothing(
    sharded: Path, vae: VQModel4D, hearts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second shard: its first latent is in a file of its own until the shard is complete."""
    calls, encode_volume = [], encoder.encode_volume

    def interrupted(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode_volume(*arguments)

    monkeypatch.setattr(encoder, "encode_volume", interrupted)
    out = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        encode(hearts, vae, out, shard_size=2)
    third = places(sharded)[2]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [places(sharded)[0].parent.name, f"{third.name}.safetensors"]
    )
    (out / f".tmp-0123abcd-{third.parent.name}").write_bytes(b"half of one")
    assert encode(hearts, vae, out, shard_size=2) == Counts(new=2, kept=3)
    assert contents(out / "manifest.csv") == contents(sharded)


def test_a_kill_between_a_shard_and_its_single_files(sharded: Path, vae: VQModel4D, hearts: Path) -> None:
    """Files that were moved into a shard are not lost either."""
    before, place = contents(sharded), places(sharded)[3]
    with safe_open(place.parent, "pt") as file:
        assert place.name in file.keys()  # noqa: SIM118  it is no dictionary
    encode(hearts, vae, sharded.parent / "single")
    shutil.copy(sharded.parent / "single" / f"{place.name}.safetensors", sharded.parent)
    shutil.rmtree(sharded.parent / "single")
    assert encode(hearts, vae, sharded.parent) == Counts(kept=5)
    assert contents(sharded) == before


def test_only_what_is_damaged_is_encoded_again(sharded: Path, vae: VQModel4D, hearts: Path) -> None:
    before, place = contents(sharded), places(sharded)[0]
    content = bytearray(place.parent.read_bytes())
    content[-1] ^= 1  # of the last latent in the shard
    place.parent.write_bytes(content)
    cohort = LatentCohort.open(sharded)
    cohort[0]
    with pytest.raises(CardioDiTError, match="its checksum differs"):
        cohort[1]
    assert encode(hearts, vae, sharded.parent) == Counts(kept=4, repaired=1)
    assert contents(sharded) == before


def test_a_shard_that_was_cut_short_or_is_missing(sharded: Path, vae: VQModel4D, hearts: Path) -> None:
    before, shards = contents(sharded), [place.parent for place in places(sharded)]
    shards[0].write_bytes(before[shards[0].name][:-1])
    shards[2].unlink()
    with pytest.raises(CardioDiTError) as caught:
        LatentCohort.open(sharded)
    for part in (f"{shards[0]} is damaged or was cut short", f"{shards[2]} does not exist"):
        assert str(caught.value).count(part) == 1
    assert encode(hearts, vae, sharded.parent) == Counts(kept=1, repaired=2, new=2)
    assert contents(sharded) == before


def test_another_model_replaces_the_latents_in_their_place(sharded: Path, vae: VQModel4D, hearts: Path) -> None:
    before, cohort = contents(sharded), LatentCohort.open(sharded)
    vae.encoder.blocks[0].conv.weight.data += 0.1
    assert encode(hearts, vae, sharded.parent) == Counts(changed=5)
    assert contents(sharded).keys() == before.keys()
    LatentCohort.open(sharded, identity_of_vae(vae))
    with pytest.raises(CardioDiTError, match="was encoded again while it was in use"):
        cohort[0]


def test_another_cohort_is_packed_without_encoding_anything_again(
    sharded: Path, vae: VQModel4D, hearts: Path, tmp_path: Path
) -> None:
    """Without the first heart, every later one lies in another shard."""
    copied = shutil.copytree(hearts.parent, tmp_path / "copied") / hearts.name
    write_manifest(copied, [row for _, row in read_table(copied, ())][1:])
    messages: list[str] = []
    assert encode(copied, vae, sharded.parent, report=messages.append) == Counts(kept=4)
    assert "Kept latent files that belong to no image" in messages[-1] and messages[-1].count("shard-") == 3
    single = tmp_path / "single"
    encode(copied, vae, single)
    assert LatentCohort.open(sharded).identity == LatentCohort.open(single / "manifest.csv").identity


def test_a_folder_is_repacked_and_unpacked_on_request(
    sharded: Path, vae: VQModel4D, hearts: Path, tmp_path: Path
) -> None:
    shards = contents(sharded)
    encode(hearts, vae, tmp_path / "single")
    single = contents(tmp_path / "single" / "manifest.csv")
    assert encode(hearts, vae, tmp_path / "single", shard_size=2) == Counts(kept=5)
    assert contents(tmp_path / "single" / "manifest.csv") == shards
    assert encode(hearts, vae, sharded.parent, shard_size=1) == Counts(kept=5)
    assert contents(sharded) == {**shards, **single}


def test_large_cohorts_are_sharded_by_default(
    vae: VQModel4D, hearts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(hearts, vae, tmp_path / "earlier")
    monkeypatch.setattr(folder, "SHARDED_ABOVE", 4)
    encode(hearts, vae, tmp_path / "new")
    encode(hearts, vae, tmp_path / "earlier")  # keeps its form, since a training may be reading it
    assert [len(list((tmp_path / name).glob("*.safetensors"))) for name in ("new", "earlier")] == [1, 5]
    with pytest.raises(CardioDiTError, match="shard_size=0 must be at least 1"):
        encode(hearts, vae, tmp_path / "new", shard_size=0)


def test_two_processes_write_the_shards_of_one(sharded: Path, vae: VQModel4D, hearts: Path, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae")
    command = ["encode", "--ids", str(hearts), "--vae", str(tmp_path / "vae"), "--output_dir", str(tmp_path / "two")]
    for process in begin_two(main, [*command, "--shard_size", "2"], said=tmp_path / "said"):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "said").read_text()
    assert "5 new, 0 kept" in (tmp_path / "said").read_text()
    assert contents(tmp_path / "two" / "manifest.csv") == contents(sharded)
