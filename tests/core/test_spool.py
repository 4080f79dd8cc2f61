"""Tensors in files: what goes in comes out, files go away, and a full disk is an error of one line."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from optimum_ishrink.core.spool import InMemory, OnDisk, Spool, check_room, filled, put_away
from optimum_ishrink.errors import OutputError, SourceError

TENSORS = [torch.arange(6.0).view(2, 3), torch.ones(4, dtype=torch.bfloat16), torch.zeros(0), torch.tensor([7, 8])]


def test_tensors_come_back_as_they_went(tmp_path: Path) -> None:
    for states in (InMemory(), Spool(tmp_path).states()):
        filled(states, TENSORS)
        assert len(states) == len(TENSORS)
        for found, expected in zip(states, TENSORS, strict=True):
            assert torch.equal(found, expected) and found.dtype == expected.dtype
        assert torch.equal(states.take(1), TENSORS[1]) and torch.equal(states[0], TENSORS[0])


def test_a_file_goes_with_its_sequence_unless_it_is_kept(tmp_path: Path) -> None:
    states = filled(Spool(tmp_path).states(), TENSORS)
    assert len(list(tmp_path.iterdir())) == 1
    del states
    assert not list(tmp_path.iterdir())
    kept_states = Spool(tmp_path).states()
    filled(kept_states, TENSORS)
    assert isinstance(kept_states, OnDisk)
    kept = kept_states.keep()
    del kept_states
    again = OnDisk.reopen(tmp_path, kept)
    assert all(torch.equal(a, b) for a, b in zip(again, TENSORS, strict=True))
    again.append(TENSORS[0])
    assert torch.equal(again[len(TENSORS)], TENSORS[0]) and torch.equal(again[0], TENSORS[0])


def test_a_temporary_folder_goes_with_its_spool() -> None:
    spool = Spool()
    folder = spool.folder
    assert folder.is_dir() and not spool.outlives
    del spool
    assert not folder.exists()


def test_a_temporary_folder_is_made_where_it_is_wanted(tmp_path: Path) -> None:
    spool = Spool(place=tmp_path / "new" / "place")
    assert spool.folder.parent == tmp_path / "new" / "place" and not spool.outlives
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write .*; name another folder"):
        Spool(place=tmp_path / "file" / "place")


def test_mapped_matrices_keep_their_values_when_their_pages_leave_memory(tmp_path: Path) -> None:
    matrix = Spool(tmp_path).zeros(300, 200)
    assert not list(tmp_path.iterdir())  # the file has no name any more
    assert matrix.shape == (300, 200) and not matrix.any()
    matrix.addmm_(torch.ones(300, 2), torch.ones(2, 200))
    put_away(matrix, torch.ones(3))
    assert bool((matrix == 2).all())


@contextmanager
def broken_states(folder: Path, write: Callable[..., int]) -> Iterator[OnDisk]:
    """States whose file cannot be written to."""
    states = Spool(folder).states()
    states._file.close()

    class Broken(io.FileIO):
        def write(self, data: object, /) -> int:
            return write(data)

    with Broken(states.path, "r+") as states._file:
        yield states


def test_a_system_that_cannot_reserve_room_makes_the_file_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    matrix = Spool(tmp_path).zeros(3, 2)
    assert matrix.shape == (3, 2) and not matrix.any()


def test_a_full_disk_says_how_much_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = r"no room for hidden states: 0.0 MB more do not fit in .*; name a folder on another disk with --offload"
    with broken_states(tmp_path, full) as states, pytest.raises(OutputError, match=message):
        states.append(TENSORS[0])
    with pytest.raises(OutputError, match=message):
        Spool(tmp_path).zeros(2, 2)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with broken_states(tmp_path, broken) as states, pytest.raises(OSError, match="Input/output error"):
        states.append(TENSORS[0])


def test_too_little_room_is_found_beforehand(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(OutputError, match=r"about 1,000,000.0 GB are needed in .*, where .* GB are free"):
        check_room(tmp_path, 10**15)


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    states = Spool(tmp_path).states()
    states.append(TENSORS[0])
    os.truncate(states.path, 4)
    with pytest.raises(SourceError, match="was cut short while it was used; run the same command again"):
        states[0]
