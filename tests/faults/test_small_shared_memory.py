"""A container's 64 MB of /dev/shm, and an order of eight million rows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import write_manifest
from tests.faults.figures import Figures
from tests.launched import ROOT
from tests.toy import make_dataset

ROWS, PARTS = 8_000_000, 32
MEBIBYTES = 64

READ = """
import json, sys, time
from pathlib import Path
from megaslm.config.plan import BatchPlan
from megaslm.dataset.manifest import read_manifest
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import MixtureDataset, plan_mixture
from megaslm.engine.distributed import join_world
from tests.forks import fork_ranks, statuses_of

folder = Path(sys.argv[1])
dataset = MixtureDataset("a", folder, None, read_manifest(folder), ("a",), None)
streams = plan_mixture([dataset]).streams

def read():
    join_world()
    began = time.monotonic()
    stream = TrainingStream(streams, BatchPlan(2, 2, 8, 4, 2, 2, 10, 8), shuffle_seed=3, workers=2)
    batches = stream.micro_batches(0)
    rows = [next(batches).rows.tolist() for _ in range(20)]
    batches.close()
    assert len({row for batch in rows for row in batch}) == 40
    print(json.dumps(time.monotonic() - began), flush=True)

assert statuses_of(fork_ranks(2, read)) == [0, 0]
"""


def _make_large(folder: Path) -> None:
    """One part under many names: it takes minutes to write as many rows."""
    manifest = make_dataset(folder, {("train", "a"): [ROWS // PARTS]}, seq_len=2)
    share = manifest.splits["train"]["a"]
    (part,) = share.parts
    parts = tuple(part.model_copy(update={"name": f"part-{number:05d}"}) for number in range(PARTS))
    for each in parts[1:]:
        shutil.copytree(folder / "train" / "a" / part.name, folder / "train" / "a" / each.name, copy_function=os.link)
    merge_index(folder / "train" / "a", parts)
    many = share.model_copy(update={"parts": parts, "rows": ROWS, "tokens": PARTS * share.tokens})
    write_manifest(folder, manifest.model_copy(update={"splits": {"train": {"a": many}}}))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_eight_million_rows_in_a_containers_shared_memory(figures: Figures, tmp_path: Path) -> None:
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False, timeout=20).returncode != 0:
        pytest.skip("this user may not mount a file system in a namespace")
    _make_large(tmp_path / "rows")
    mount = f'mount -t tmpfs -o size={MEBIBYTES}m tmpfs /dev/shm && exec "$0" -c "$1" "$2"'
    read = subprocess.run(
        [*namespace, "sh", "-c", mount, sys.executable, READ, str(tmp_path / "rows")],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
    seconds = max(float(line) for line in read.stdout.splitlines() if line[:1].isdigit())
    figures.record("small_shared_memory", mebibytes=MEBIBYTES, rows=ROWS, seconds=seconds)
