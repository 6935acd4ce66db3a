"""Errors that gather, and errors of libraries that become sentences."""

import errno
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from cardiodit.errors import CardioDiTError, Problems, print_error, reading, sentence_of, try_all, writing


def fail(text: str) -> None:
    raise CardioDiTError(text)


def test_everything_is_tried_and_everything_wrong_is_said() -> None:
    assert try_all(lambda: 1, lambda: "two") == [1, "two"]
    with pytest.raises(CardioDiTError, match="^first\nthird$"):
        try_all(lambda: fail("first"), lambda: 2, lambda: fail("third"))
    with pytest.raises(ZeroDivisionError):  # what nobody can mend is not gathered
        try_all(lambda: 1 // 0)


def test_problems_come_as_a_list_with_advice() -> None:
    problems = Problems("The files cannot be used")
    problems.raise_if_any()
    problems.add("a is missing")
    problems.add("b is empty")
    with pytest.raises(
        CardioDiTError, match="^The files cannot be used:\n  - a is missing\n  - b is empty\nMend them.$"
    ):
        problems.raise_if_any("Mend them.")


def raised_by(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:
        function()
    return raised.value


def deeply_nested() -> None:
    json.loads("[" * 100_000)


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (deeply_nested, "cannot be read as JSON: it is nested too deeply. Copy"),
        (lambda: json.loads("9" * 5000), "cannot be read as JSON: Exceeds the limit"),
        (lambda: {}["a"], "cannot be read as JSON: 'a' is missing. Copy"),
        (lambda: b"\xff".decode(), "cannot be read as JSON: it is not UTF-8 text. Copy"),
        (lambda: gzip.decompress(b"\x1f\x8b"), "is damaged or was cut off"),
        (lambda: np.empty(2**50), "cannot be read as JSON: it needs more memory than there is"),
    ],
)
def test_what_a_library_raises_names_file_and_reason(fails: Callable[[], object], reason: str) -> None:
    def read() -> None:
        with reading("folder/a.json", "JSON"):
            fails()

    error = raised_by(read)
    assert isinstance(error, CardioDiTError) and str(error).startswith(f"folder/a.json {reason}")


def test_our_own_errors_pass_unchanged() -> None:
    with pytest.raises(CardioDiTError, match=r"^It is so\.$"), reading("a"), writing("b"):
        fail("It is so.")


def test_an_unforeseen_error_is_one_sentence_that_leads_to_its_traceback(capsys: pytest.CaptureFixture) -> None:
    error = raised_by(lambda: [][3])
    print_error(error, "cardiodit")
    shown = capsys.readouterr().err
    assert shown.startswith("cardiodit: error: Something unexpected went wrong (IndexError: list index out of range).")
    assert "--debug" in shown and "Traceback" not in shown and len(shown.splitlines()) == 1
    print_error(error, "cardiodit", debug=True)
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "--debug" not in shown.splitlines()[-1]


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise CardioDiTError("a.safetensors is damaged:\nits checksum differs.")


def test_the_traceback_of_a_loaders_worker_is_left_out() -> None:
    error = raised_by(lambda: list(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert "Traceback" in str(error)
    assert sentence_of(error) == "a.safetensors is damaged:\nits checksum differs."


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "a.npy"),
        OSError("1048576 requested and 4096 written"),  # NumPy
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("File too large (os error 27)"),
    ],
)
def test_a_full_disk_is_recognized_whoever_reports_it(error: Exception) -> None:
    def write() -> None:
        with writing("folder/a.npy"):
            raise error

    assert "The disk is full, so folder/a.npy was not written." in str(raised_by(write))
    assert "The disk is full" in sentence_of(error)


def test_other_errors_of_the_system_name_the_file(tmp_path: Path) -> None:
    error = raised_by(lambda: (tmp_path / "none").read_text())
    assert sentence_of(error) == f"{tmp_path / 'none'}: No such file or directory."
    assert "not enough memory" in sentence_of(MemoryError("Unable to allocate 8 EiB"))
