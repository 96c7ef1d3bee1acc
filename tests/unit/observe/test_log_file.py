import errno
import os
from pathlib import Path

import pytest

from megaslm.observe import log_file
from megaslm.observe.log_file import LogFile


def test_entries_follow_what_is_kept_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nhal")
    file = LogFile(path, end_bytes=4)
    assert path.read_bytes() == b"one\n"
    file.keep(b"2\n")
    file.keep(b"3\n")
    assert path.read_bytes() == b"one\n"
    file.flush()
    file.keep(b"4\n")
    file.flush()
    file.flush()
    assert path.read_bytes() == b"one\n2\n3\n4\n"


def test_a_file_that_was_deleted_begins_anew(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    file.keep(b"1\n")
    file.flush()
    (tmp_path / "log").unlink()
    file.keep(b"2\n")
    file.flush()
    assert (tmp_path / "log").read_bytes() == b"2\n"


def test_what_finds_no_room_is_written_later_and_nothing_of_it_by_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LogFile(tmp_path / "log")
    file.keep(b"1111\n")
    file.flush()
    room_bytes = [3]
    write = os.pwrite

    def write_into_the_room(descriptor: int, data: memoryview, offset: int) -> int:
        fits = min(room_bytes[0], len(data))
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        room_bytes[0] -= fits
        return write(descriptor, data[:fits], offset)

    monkeypatch.setattr(log_file.os, "pwrite", write_into_the_room)
    for entry in (b"2222\n", b"3333\n"):
        file.keep(entry)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            file.flush()
        assert (tmp_path / "log").read_bytes() == b"1111\n"
    room_bytes[0] = 100
    file.flush()
    assert (tmp_path / "log").read_bytes() == b"1111\n2222\n3333\n"


def test_what_waits_is_bounded_and_what_is_lost_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_MOST_KEPT_BYTES", 10)
    file = LogFile(tmp_path / "missing" / "log")
    for entry in (b"1111\n", b"2222\n", b"3333\n"):
        file.keep(entry)
    with pytest.raises(FileNotFoundError):
        file.flush()
    assert file.lost_entries == 1
    (tmp_path / "missing").mkdir()
    file.flush()
    assert (tmp_path / "missing" / "log").read_bytes() == b"1111\n2222\n"
