"""Bad shards: a corrupt one is refused by name, and what a failing server sends is fetched again."""

from pathlib import Path
from shutil import copytree

import pytest

from tests.faults.figures import Figures
from tests.faults.runs import Material, records, run_ranks, upload, weights_sha256
from tests.messages import Says, line_with
from tests.s3 import Answer, FaultyS3, Rule

pytestmark = pytest.mark.slow


def test_a_corrupt_shard_is_refused_by_name(
    material: Material, figures: Figures, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    scored = Path(copytree(material.scored, tmp_path / "scored"))
    (shard,) = (scored / "train" / "b" / "part-00000").glob("*.mds")
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    config = material.config(tmp_path / "run", data={"train": str(scored)})
    assert run_ranks(config) == [2, 2]
    said = capfd.readouterr().err
    says(line_with(said, shard), "xxh3_64")
    assert "Traceback" not in said
    # Its rows are among those of the first step, which is not made.
    metrics = tmp_path / "run" / "metrics.jsonl"
    steps_made = len(records(config)) if metrics.exists() else 0
    assert steps_made == 0
    figures.record("bad_shard", steps_made=steps_made)


def test_a_failing_server_is_asked_again(
    material: Material, undisturbed: str, faulty_s3: FaultyS3, figures: Figures, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    url = upload(material.scored, faulty_s3.bucket)
    faulty_s3.proxy.rules.append(Rule(Answer(500), fraction=0.2, seed=3))
    fetch = {"cache": str(tmp_path / "cache")}
    config = material.config(tmp_path / "run", data={"train": url, "fetch": fetch})
    assert run_ranks(config) == [0, 0]
    assert faulty_s3.proxy.faults > 0
    assert weights_sha256(config) == undisturbed
    figures.record("bad_shard", failed_requests=faulty_s3.proxy.faults)
