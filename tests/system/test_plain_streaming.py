"""What `prepare` and `score` write is read by mosaicml-streaming alone, without MegaSLM."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from megaslm.config.section import Split
from megaslm.dataset.rows import RowReader
from megaslm.preparing.prepare import prepare
from tests.corpus import recipe_of
from tests.scoring import make_reference, run_job, task_of
from tests.toy import make_dataset

# torchvision is not installed beside MegaSLM; where it is, the stand-ins are not needed.
PLAIN_STREAMING = """
import sys, types
import transformers
names = ["torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"]
if __import__("importlib.util").util.find_spec("torchvision") is None:
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules["torchvision.datasets"].VisionDataset = object
    sys.modules["torchvision.transforms.functional"].to_tensor = None
import streaming
for folder in sys.argv[1:]:
    rows = list(streaming.StreamingDataset(local=folder, batch_size=1, shuffle=False))
    for name in sorted(set(rows[0]) - {"domain"}):
        total = sum(float(row[name].astype("float64").sum()) for row in rows)
        print(len(rows), name, rows[0][name].dtype, rows[0][name].shape, total)
assert not [name for name in sys.modules if name.startswith("megaslm")]
"""


def test_streaming_alone_reads_them(corpus: Path, tmp_path: Path) -> None:
    places: list[tuple[Path, Split, str]] = []
    for compression in (None, "zstd"):
        folder = tmp_path / f"prepared-{compression}"
        manifest = prepare(recipe_of(corpus, compression=compression), folder, workers=1)
        places += [(folder, split, domain) for split, domains in manifest.splits.items() for domain in domains]
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]}, target_mask=True)
    make_reference(tmp_path / "reference")
    run_job(1, task_of(tmp_path / "reference", tmp_path / "tokens", tmp_path / "scored"))
    places.append((tmp_path / "scored", "train", "a"))
    result = subprocess.run(
        [sys.executable, "-c", PLAIN_STREAMING, *(str(folder.joinpath(*place)) for folder, *place in places)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert result.stdout.splitlines() == [line for place in places for line in described(*place)], result.stderr


def described(folder: Path, split: Split, domain: str) -> list[str]:
    """The lines of the script, of what MegaSLM reads; all values are multiples of so little that sums are exact."""
    reader = RowReader(folder, split, domain)
    rows = reader.rows(0, len(reader))
    return [
        f"{len(reader)} {name} {rows[name].dtype} {rows[name][0].shape} {float(rows[name].astype(np.float64).sum())}"
        for name in sorted(set(rows) - {"domain"})
    ]
