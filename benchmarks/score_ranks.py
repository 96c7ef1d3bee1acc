"""What a second core is worth to `megaslm score`: one rank and two, each pinned to a core of its own.

Throughput counts from the moment a rank has its model and begins with rows to the moment the last one is done, by the
clock on the wall: the start of Python and the loading of the model happen once, whatever the size of the dataset.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

from harness.corpora import corpus_name
from harness.references import drawn_model, llama, prepare_text
from harness.report import Bar, options, report

from megaslm.dataset.manifest import TOKENIZER, read_manifest
from megaslm.dataset.score_summary import read_scores

ROOT = Path(__file__).parents[1]
PARTS, PART_BYTES = 8, 20_000
LEAST_SPEED = 1.8


class Job:
    """Scoring a dataset by a number of ranks."""

    def __init__(self, folder: Path, dataset: Path, reference: Path) -> None:
        self._output = folder / "scored"
        arguments = ["score", "--reference", reference, "--batch-rows", "8", dataset, self._output]
        self._command = [sys.executable, "-m", "megaslm", *map(str, arguments)]

    def run(self, cores: list[int]) -> tuple[float, float]:
        """Scores with one rank on each of these cores; gives targets per second, and the seconds of the whole job."""
        shutil.rmtree(self._output, ignore_errors=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        began = time.perf_counter()
        ranks = [self._start(rank, cores, port) for rank in range(len(cores))]
        said = [rank.communicate()[0] for rank in ranks]
        seconds = time.perf_counter() - began
        if any(rank.returncode for rank in ranks):
            raise SystemExit("scoring failed:\n" + "\n".join(said))
        return self._targets_per_second(), seconds

    def _start(self, rank: int, cores: list[int], port: int) -> "subprocess.Popen[str]":
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(cores), "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        environment |= {name: str(value) for name, value in world.items()}
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cores[rank]})  # Which the rank inherits.
        try:
            return subprocess.Popen(
                self._command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        finally:
            os.sched_setaffinity(0, allowed)

    def _targets_per_second(self) -> float:
        summary = read_scores(self._output)
        assert summary is not None
        by = [by for part in summary.parts for by in part.by]
        began: datetime = min(each.started for each in by)
        ended = max(each.started + timedelta(seconds=each.rank_seconds) for each in by)
        return summary.targets / (ended - began).total_seconds()


def main() -> None:
    chosen = options(__doc__)
    cores = sorted(os.sched_getaffinity(0))[:2]
    architecture = llama(1_500, 128, 2) if chosen.quick else llama(32_000, 512, 6)
    repetitions = 1 if chosen.quick else 3
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = prepare_text(folder, PART_BYTES, vocab_size=architecture.vocab_size, seq_len=512, parts=PARTS)
        manifest = read_manifest(dataset)
        reference = Path(shutil.copytree(dataset / TOKENIZER, folder / "reference"))
        drawn_model(architecture, manifest.eos_id).save_pretrained(reference)
        job = Job(folder, dataset, reference)
        found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for _ in range(repetitions):
            for ranks, runs in found.items():
                runs.append(job.run([cores[rank % len(cores)] for rank in range(ranks)]))
    speeds = [two / one for (one, _), (two, _) in zip(found[1], found[2], strict=True)]
    rows = [
        {
            "ranks": ranks,
            "tokens/s": median(speed for speed, _ in runs),
            "speed, to one": median(speeds) if ranks == 2 else 1.0,
            "from – to": f"{min(speeds):.3f}–{max(speeds):.3f}" if ranks == 2 else "",
            "seconds of the job": median(seconds for _, seconds in runs),
        }
        for ranks, runs in found.items()
    ]
    total = manifest.splits["train"]["text"]
    report(
        f"How much faster is scoring with a second core? {PARTS} equal parts, {total.rows} rows of 512 of "
        f"{corpus_name()}, llama of {architecture.num_layers} layers, width {architecture.hidden_size}, "
        f"V={architecture.vocab_size}, {len(cores)} cores, by the clock on the wall",
        rows,
        [Bar("speed of two ranks, to one", median(speeds), LEAST_SPEED, "higher")],
        chosen,
    )


if __name__ == "__main__":
    main()
