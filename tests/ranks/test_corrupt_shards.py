"""A training run that meets a corrupt shard ends with one message, whichever process met it."""

from pathlib import Path

import pytest

from tests.forked_cli import run_megaslm
from tests.messages import Says, line_with
from tests.toy import make_dataset, run_config, write_config


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_train_refuses_a_flipped_byte_by_name(tmp_path: Path, workers: int, says: Says) -> None:
    dataset = tmp_path / "tokens"
    make_dataset(dataset, {("train", "a"): [20, 15], ("train", "b"): [30]})
    (shard,) = (dataset / "train" / "a" / "part-00001").glob("*.mds")
    content = bytearray(shard.read_bytes())
    content[-7] ^= 64
    shard.write_bytes(content)
    config = run_config(tmp_path / "run", dataset, data={"loader_workers": workers})
    output = run_megaslm("train", write_config(tmp_path / "run.yaml", config), expect_status=2)
    assert output.count(str(shard)) == 1
    says.without_numbers(line_with(output, shard), "xxh3_64", "(rows 20 to 34)")
    assert "Traceback" not in output
