"""A mask is made from object storage into object storage, and is the one that is made of local folders."""

from pathlib import Path

import pytest

from megaslm.dataset.remote import open_dataset
from megaslm.errors import DataError
from megaslm.scoring.mask import mask_rule
from megaslm.scoring.mask_job import MaskRequest, mask
from tests.inspected import make_inspected
from tests.messages import Says
from tests.s3 import Bucket

pytest.importorskip("s3fs")
pytestmark = pytest.mark.slow


def test_a_mask_is_the_same_wherever_it_is_made(s3: Bucket, tmp_path: Path, says: Says) -> None:
    scored = make_inspected(tmp_path / "scored", scored=True).folder
    (scored / "cost.json").write_text('{"scoring": {"seconds": 1.0, "gpu_hours": 0.0}}\n')
    for path in scored.rglob("*"):
        if path.is_file():
            s3.put(f"scored/{path.relative_to(scored).as_posix()}", path.read_bytes())
    rule = mask_rule("reference_and_entropy", "0.6", 5.0)
    local = mask(MaskRequest(scored, tmp_path / "masked", rule))
    task = MaskRequest(s3.url("scored"), s3.url("masked"), rule, working=tmp_path / "work", cache=tmp_path / "cache")
    assert mask(task) == local
    for name in ("cost.json", "train/a/index.json", "train/a/part-00001/shard.00000.mds"):
        assert s3.get(f"masked/{name}") == (tmp_path / "masked" / name).read_bytes()
    assert open_dataset(s3.url("masked"), str(tmp_path / "cache")).path.is_dir()
    # It is finished: nothing is written, and another rule is refused.
    assert mask(task) == local
    with pytest.raises(DataError) as refused:
        mask(MaskRequest(task.dataset, task.output, mask_rule("reference", "0.6", 5.0), None, task.working, task.cache))
    says(refused, s3.url("masked"), "mask.criterion = reference_and_entropy ", " reference ", BUCKET=s3.name)
