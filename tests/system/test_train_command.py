"""`python -m megaslm train` as a launcher starts it: real processes, with nothing imported beforehand."""

from pathlib import Path

from tests.launched import run_megaslm
from tests.toy import make_dataset, run_config, write_config
from tests.training import losses, run_training


def test_two_ranks_train_as_forked_ones_do(tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    config = write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens"))
    said = run_megaslm("train", config, world_size=2)
    assert "Traceback" not in said
    assert f"step 6 · saved {tmp_path / 'run' / 'checkpoints'}" in said
    run_training(run_config(tmp_path / "forked", tmp_path / "tokens"), world_size=2)
    assert losses(tmp_path / "run") == losses(tmp_path / "forked")
    assert len(losses(tmp_path / "run")) == 6
