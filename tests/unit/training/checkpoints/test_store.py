"""Which checkpoints of a run stay, and which are taken for whole."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from megaslm.config.retention import Retention
from megaslm.config.run_files import COMPLETE
from megaslm.errors import CheckpointError
from megaslm.training.checkpoints.file_list import corruption_of, describe, read_file_list, write_file_list
from megaslm.training.checkpoints.store import (
    check_whole,
    complete_checkpoints,
    find_corruption,
    prune,
    remove_checkpoint,
    remove_unfinished,
    step_folder,
)
from tests.messages import Says


def make_checkpoint(checkpoints: Path, step: int) -> Path:
    folder = step_folder(checkpoints, step)
    folder.mkdir(parents=True)
    for name, content in {"weights-00000.safetensors": b"w" * 40, "progress.json": b"{}"}.items():
        (folder / name).write_bytes(content)
    write_file_list(folder, {path.name: describe(path) for path in folder.iterdir()})
    return folder


def steps(checkpoints: Path) -> list[int]:
    return [checkpoint.step for checkpoint in complete_checkpoints(checkpoints)]


@pytest.mark.parametrize(
    ("retention", "gone"),
    [
        (Retention(2, None), [10, 20, 30]),
        (Retention(2, 20), [10, 30]),
        (Retention(5, None), []),
        (Retention(9, 7), []),
        (Retention(1, 50), [10, 20, 30, 40]),
    ],
)
def test_the_newest_and_the_multiples_stay(retention: Retention, gone: list[int]) -> None:
    assert retention.superfluous([10, 20, 30, 40, 50]) == gone


def test_corrupt_and_later_checkpoints_are_left_and_not_counted(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 90):
        make_checkpoint(tmp_path, step)
    gone = prune(tmp_path, Retention(2, None), up_to_step=40, corrupt=(30,))
    assert gone == [step_folder(tmp_path, 10)]
    assert steps(tmp_path) == [20, 30, 40, 90]


def test_what_a_cut_off_save_left_is_removed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10)
    (make_checkpoint(tmp_path, 20) / COMPLETE).unlink()
    (tmp_path / ".unfinished-step-00000030").mkdir()
    (tmp_path / "notes").mkdir()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000010", "notes"}


def test_a_removal_that_is_cut_off_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path, 10)

    def cut_off(_: Path) -> None:
        raise OSError(errno.EIO, "", str(folder))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(OSError, match=folder.name):
            remove_checkpoint(folder)
    assert folder.exists()
    assert complete_checkpoints(tmp_path) == []
    remove_unfinished(tmp_path)
    assert not folder.exists()


def test_any_changed_byte_of_any_file_is_found(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 10)
    assert find_corruption(folder) == []
    for path in folder.iterdir():
        content = path.read_bytes()
        for place in range(len(content)):
            for change in (1, 32, 128):
                path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
                with pytest.raises(CheckpointError, match=path.name):
                    check_whole(folder)
        path.write_bytes(content)
    check_whole(folder)


def test_short_and_missing_files_are_named(tmp_path: Path, says: Says) -> None:
    folder = make_checkpoint(tmp_path, 10)
    (folder / "progress.json").write_bytes(b"{")
    (folder / "weights-00000.safetensors").unlink()
    with pytest.raises(CheckpointError) as raised:
        check_whole(folder)
    says(raised, folder, "progress.json", "1", "2", "weights-00000.safetensors")


def test_a_checkpoint_of_the_first_version_is_refused_as_that(tmp_path: Path, says: Says) -> None:
    folder = make_checkpoint(tmp_path, 10)
    (folder / COMPLETE).write_text('{\n "mp_rank_00_model_states.pt": [1, "0"]\n}\n')
    with pytest.raises(CheckpointError) as refused:
        check_whole(folder)
    says(refused, folder, "0.1.0")


def test_a_folder_without_its_list_is_no_checkpoint(tmp_path: Path, says: Says) -> None:
    folder = make_checkpoint(tmp_path, 10)
    (folder / COMPLETE).unlink()
    assert complete_checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError) as refused:
        find_corruption(folder)
    says(refused, folder)


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path, says: Says) -> None:
    folder = make_checkpoint(tmp_path, 10)
    weights = folder / "weights-00000.safetensors"
    # Reading the memory of nobody: the system says that it cannot.
    weights.unlink()
    weights.symlink_to("/proc/self/mem")
    files = read_file_list(folder)
    unread = {**files, weights.name: files[weights.name]._replace(size=0)}
    (corruption,) = corruption_of(folder, [weights.name], unread)
    says(corruption.found, os.strerror(errno.EIO))
