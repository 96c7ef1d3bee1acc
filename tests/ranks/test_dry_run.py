"""A dry run goes through a step, a validation and a save, and leaves the run as if it had not been."""

from pathlib import Path

import pytest

from tests.messages import Says
from tests.toy import make_dataset, run_config
from tests.training import are_equal, changed, last_weights, losses, run_training, with_steps


def test_a_run_after_a_dry_run_is_the_run_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15], ("heldout", "a"): [5]})
    plain = run_config(
        tmp_path / "plain",
        tmp_path / "tokens",
        train={"objective": "slm", "schedule": "constant"},
        slm={"criterion": "loss", "mode": "running", "keep_ratio_warmup_tokens": 128},
        validation={"sets": {"held": {"dataset": str(tmp_path / "tokens")}}},
    )
    checked = changed(plain.model_copy(update={"run_dir": str(tmp_path / "checked")}), guard={"dry_run": True})
    run_training(plain, world_size=2)
    assert "dry run" not in capfd.readouterr().out
    run_training(with_steps(checked, 4), world_size=2)
    run_training(checked, world_size=2, resume=True)

    told = [line for line in capfd.readouterr().out.splitlines() if "dry run" in line]
    assert len(told) == 2
    says.without_numbers(told[0])
    assert losses(tmp_path / "checked") == losses(tmp_path / "plain")
    assert are_equal(last_weights(tmp_path / "checked"), last_weights(tmp_path / "plain"))
    assert names_in(tmp_path / "checked") == names_in(tmp_path / "plain")


def names_in(run: Path) -> set[str]:
    """What is in a run folder; without the times of its events."""
    return {path.name.partition(".tfevents.")[0] for path in run.iterdir()}
