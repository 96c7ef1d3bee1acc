"""A checkpoint gets its name after its content is on the disk: a power failure leaves no name without its bytes."""

from pathlib import Path

from megaslm.config.run_files import COMPLETE
from megaslm.files import unfinished
from megaslm.training.checkpoints.file_list import read_file_list
from megaslm.training.checkpoints.store import step_folder
from tests.rank_pool import RankPool
from tests.ranks.saving_worker import STEP, save


def test_each_rank_syncs_its_files_and_the_first_names_the_checkpoint(ranks: RankPool, tmp_path: Path) -> None:
    folder = step_folder(tmp_path, STEP)
    first, second = ranks.run(save, tmp_path)
    named = ("rename", folder.name)
    before = first[: first.index(named)]
    synced = [name for kind, name in before if kind == "sync"]
    # The list of files comes after all of them, and the checkpoint's own name after the list.
    *of_files, the_list, the_folder = synced
    assert (the_list, the_folder) == (unfinished(folder / COMPLETE).name, unfinished(folder).name)
    assert ("rename", COMPLETE) in before
    assert first[len(before) :] == [named, ("sync", tmp_path.name)]
    # What the first rank does not write, the second does.
    assert {kind for kind, _ in second} == {"sync"}
    assert sorted([*of_files, *(name for _, name in second)]) == sorted(read_file_list(folder))
