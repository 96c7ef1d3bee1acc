"""A rehearsal goes through a step, a validation and a save, and leaves the run as if it had not been."""

from pathlib import Path

import pytest

from tests.toy import make_dataset, run_config
from tests.training import are_equal, changed, last_weights, losses, run_training, with_steps


def test_a_rehearsed_run_is_the_run_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15], ("heldout", "a"): [5]})
    plain = run_config(
        tmp_path / "plain",
        tmp_path / "tokens",
        train={"objective": "slm", "schedule": "constant"},
        slm={"score": "loss", "mode": "running", "keep_ratio_warmup_tokens": 128},
        validation={"sets": {"held": {"dataset": str(tmp_path / "tokens")}}},
    )
    rehearsed = changed(plain.model_copy(update={"run_dir": str(tmp_path / "rehearsed")}), guard={"rehearse": True})
    run_training(plain, world_size=2)
    assert "rehearsed a step" not in capfd.readouterr().out
    run_training(with_steps(rehearsed, 4), world_size=2)
    run_training(rehearsed, world_size=2, resume=True)

    assert capfd.readouterr().out.count("rehearsed a step, a validation and a save") == 2
    assert losses(tmp_path / "rehearsed") == losses(tmp_path / "plain")
    assert are_equal(last_weights(tmp_path / "rehearsed"), last_weights(tmp_path / "plain"))
    assert {path.name for path in (tmp_path / "rehearsed").iterdir()} == {
        path.name for path in (tmp_path / "plain").iterdir()
    }
