import signal
import time
from pathlib import Path

import pytest

from cardiodit import CardioDiTError
from cardiodit._util.atomic_io import append_line, atomic_file, new_folder, replace_folder, restore_folder

from ..conftest import begin


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "volume.nii.gz"
    with atomic_file(target) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    process = begin(write_half_and_wait, target, said=tmp_path / "said")
    deadline = time.monotonic() + 60
    while not (tmp_path / "said").is_file() or "writing" not in (tmp_path / "said").read_text():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert target.read_text() == "old"


def write_half_and_wait(target: Path) -> None:
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(60)


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "samples.jsonl"
    workers = [begin(append_lines, target, letter * 500) for letter in "ab"]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 2
    lines = target.read_text().splitlines()
    assert len(lines) == 400 and {len(set(line)) for line in lines} == {1} and {len(line) for line in lines} == {500}


def append_lines(target: Path, line: str) -> None:
    for _ in range(200):
        append_line(target, line)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with pytest.raises(RuntimeError), new_folder(target) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    target.mkdir()
    with new_folder(target) as temporary:
        (temporary / "weights").touch()
        assert list(target.iterdir()) == []
    assert [p.name for p in target.iterdir()] == ["weights"]
    with pytest.raises(CardioDiTError, match="is not empty, it contains weights"), new_folder(target):
        pass
    with pytest.raises(CardioDiTError, match="is a file"), new_folder(target / "weights"):
        pass


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "best"
    for name in ("first", "second"):
        with replace_folder(target) as temporary:
            (temporary / name).touch()
    assert [p.name for p in target.iterdir()] == ["second"]
    with pytest.raises(RuntimeError), replace_folder(target) as temporary:
        (temporary / "third").touch()
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("new_is_there", [False, True])
def test_an_interrupted_replacement_is_repaired(tmp_path: Path, new_is_there: bool) -> None:
    """Killed between the two renames, or between the second and the removal of the old one."""
    target, aside = tmp_path / "best", tmp_path / ".old-best"
    aside.mkdir()
    (aside / "old").touch()
    if new_is_there:
        target.mkdir()
        (target / "new").touch()
    restore_folder(target)
    assert [p.name for p in target.iterdir()] == ["new" if new_is_there else "old"]
    assert not aside.exists()
