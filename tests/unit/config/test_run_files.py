"""What the files of a run's folder tell of it."""

from pathlib import Path

from megaslm.config.run_files import CHECKPOINTS, COMPLETE, CONFIG, how_to_start_again
from tests.messages import Says


def test_how_to_start_again_depends_on_what_was_saved(tmp_path: Path, says: Says) -> None:
    """Before the run has begun, before its first checkpoint is complete, and after that."""
    checkpoint = tmp_path / CHECKPOINTS / "step-00000001"
    checkpoint.mkdir(parents=True)
    advice = [how_to_start_again(tmp_path)]
    for written in (tmp_path / CONFIG, checkpoint / COMPLETE):
        written.touch()
        advice.append(how_to_start_again(tmp_path))
    says("\n".join(advice))
    assert ["--resume" in told for told in advice] == [False, True, True]
