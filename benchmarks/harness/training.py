"""A small model, trained by the commands that any run uses."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def train(
    folder: Path, dataset: Path, *, vocab_size: int, seq_len: int, batch_rows: int, total_tokens: int, seed: int = 0
) -> Path:
    """Trains a llama of 4 layers of 128, with one head for both ends, in `folder`; gives its export."""
    config = {
        "run_dir": str(folder / "run"),
        "seed": seed,
        "model": {
            "from_scratch": {
                "vocab_size": vocab_size,
                "hidden_size": 128,
                "intermediate_size": 352,
                "num_layers": 4,
                "num_heads": 4,
                "num_kv_heads": 2,
                "max_position_embeddings": seq_len,
                "tie_embeddings": True,
            }
        },
        "data": {"train": str(dataset), "seq_len": seq_len, "loader_workers": 0},
        "train": {
            "objective": "clm",
            "total_tokens": total_tokens,
            "global_batch_tokens": batch_rows * seq_len,
            "micro_batch_rows": batch_rows,
            "lr": 3e-3,
            "warmup_tokens": total_tokens // 16,
            "min_lr_ratio": 0.1,
        },
        "zero": {"reduce_bucket_size": 2_000_000, "prefetch_bucket_size": 2_000_000},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for arguments in (("train", folder / "run.yaml"), ("export", folder / "run", folder / "model")):
        command = [sys.executable, "-m", "megaslm", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{arguments[0]} failed:\n{ran.stdout}{ran.stderr}")
    return folder / "model"
