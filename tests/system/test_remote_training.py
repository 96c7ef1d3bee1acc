"""A run whose datasets are on object storage is the run on local copies of them, through a cache of its own."""

import json
from pathlib import Path

import pytest

from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.s3 import Answer, FaultyS3, Rule
from tests.toy import write_config

pytest.importorskip("s3fs")
pytestmark = pytest.mark.slow


def put(s3: FaultyS3, prefix: str, dataset: Path) -> str:
    for path in sorted(dataset.rglob("*")):
        if path.is_file():
            s3.bucket.put(f"{prefix}/{path.relative_to(dataset).as_posix()}", path.read_bytes())
    return s3.bucket.url(prefix)


def losses(run: Path) -> list[tuple[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["kind"], record["loss"]) for record in records if record["kind"] in ("step", "validation")]


def test_training_validation_and_reference_check_read_from_object_storage(
    chain: Chain, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    scored, tokens = put(faulty_s3, "scored", chain.scored), put(faulty_s3, "tokens", chain.tokens)
    faulty_s3.proxy.rules.append(Rule(Answer(500), fraction=0.1, seed=3))
    local = chain.slm_config(tmp_path / "local")
    fetch = local.data.fetch.model_copy(update={"cache": str(tmp_path / "cache")})
    remote = local.model_copy(
        update={
            "run_dir": str(tmp_path / "remote"),
            "data": local.data.model_copy(update={"train": scored, "fetch": fetch}),
            "validation": local.validation.model_copy(
                update={"sets": {"held": local.validation.sets["held"].model_copy(update={"dataset": tokens})}}
            ),
        }
    )
    run_megaslm("train", write_config(tmp_path / "remote.yaml", remote), world_size=2)
    assert faulty_s3.proxy.faults > 0
    assert losses(tmp_path / "remote") == losses(chain.slm_run)
    cost = json.loads((tmp_path / "remote" / "cost.json").read_text())
    assert cost["shard_checks"]["files"] == len(list((chain.scored / "train").rglob("*.mds")))
    assert cost["scoring"] == json.loads((chain.slm_run / "cost.json").read_text())["scoring"]
    provenance = json.loads((tmp_path / "remote" / "manifest.json").read_text())
    assert provenance["datasets"]["data.train"]["folder"] == scored
    # What was fetched is there for the next run, which asks for the manifests alone.
    fetched = len(faulty_s3.proxy.requests("GET", "*.mds*"))
    assert fetched > 0
    again = remote.model_copy(update={"train": remote.train.model_copy(update={"total_tokens": 9 * 8 * 16})})
    longer = ("--resume", "--allow-changed", "train.total_tokens")
    run_megaslm("train", write_config(tmp_path / "again.yaml", again), *longer, world_size=2)
    assert len(faulty_s3.proxy.requests("GET", "*.mds*")) == fetched
