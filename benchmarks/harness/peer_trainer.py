"""The transformers Trainer under DeepSpeed ZeRO-3, on rows of a file: what MegaSLM's training is measured beside.

Runs as a process of its own: `python peer_trainer.py SETTINGS.json`, where the file holds a `PeerRun`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.ops import __compatible_ops__ as compatible_ops
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainerCallback, TrainingArguments

from megaslm.config.schema import Architecture

# DeepSpeed would compile a shared-memory all-reduce for CPUs at the start, which one rank does not need.
compatible_ops["deepspeed_shm_comm"] = False

ZERO_3: dict[str, Any] = {
    "zero_optimization": {"stage": 3, "overlap_comm": True},
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}


@dataclass(frozen=True)
class PeerRun:
    """One training by the Trainer.

    `model`: a LlamaConfig's values. `rows`: a .npy file of (N, L+1) int64 tokens. `online_keep_ratio`: with a ratio,
    the loss is that of the tokens of largest excess over a reference of the same shape, which runs beside the training.
    `folder`: where the results go, see `step_times`.
    """

    model: dict[str, Any]
    rows: str
    folder: str
    steps: int
    micro_batch_rows: int
    micro_steps: int
    zero: dict[str, Any]
    bf16: bool = False
    recompute: bool = False
    online_keep_ratio: float | None = None

    def llama_config(self) -> LlamaConfig:
        """The model's configuration."""
        return LlamaConfig(**self.model)

    def command(self) -> list[str]:
        """The command that runs it."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "peer.json"
        settings.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return [sys.executable, __file__, str(settings)]


def llama_values(shape: Architecture) -> dict[str, Any]:
    """The values of a LlamaConfig of the same shape."""
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": shape.max_position_embeddings,
        "tie_word_embeddings": shape.tie_embeddings,
    }


def run_alone(run: PeerRun) -> None:
    """Runs a training to its end in a process of its own.

    Raises:
        RuntimeError: it failed; the message is the end of what it printed.
    """
    ran = subprocess.run(run.command(), capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError((ran.stdout + ran.stderr)[-2000:])


def step_times(folder: Path) -> list[float]:
    """Seconds of the run's clock at the end of each step."""
    return [float(line) for line in (folder / "steps.txt").read_text(encoding="utf-8").split()]


def peak_gib(folder: Path) -> float:
    """What the GPU held at most, in GiB; 0 on a CPU."""
    return float((folder / "peak_gib.txt").read_text(encoding="utf-8"))


class _Rows(Dataset[Mapping[str, Tensor]]):
    def __init__(self, path: str) -> None:
        self._rows = np.load(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        # As long as a row's targets, so that both trainings compute as many logits; the Trainer's own shift loses one.
        inputs = torch.from_numpy(self._rows[number, :-1].astype("int64"))
        return {"input_ids": inputs, "labels": inputs}


class _OnlineReference(Trainer):
    """Selects as a user of the Trainer would: within each micro-batch, by both models' losses."""

    reference: nn.Module
    keep_ratio: float

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        labels = inputs["labels"][:, 1:].flatten()
        with torch.no_grad():
            expected = _losses(self.reference(input_ids=inputs["input_ids"], use_cache=False).logits, labels)
        losses = _losses(model(input_ids=inputs["input_ids"], use_cache=False).logits, labels)
        chosen = (losses.detach() - expected).topk(round(self.keep_ratio * len(labels))).indices
        return losses[chosen].mean()


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, reduction="none")


class _Clock(TrainerCallback):
    def __init__(self, folder: Path) -> None:
        self._file = folder / "steps.txt"
        self._file.write_text("", encoding="utf-8")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{time.perf_counter()}\n")


def train(run: PeerRun) -> None:
    """Trains as the run says."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    config = run.llama_config()
    dtype = torch.bfloat16 if run.bf16 else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Before the Trainer's arguments announce DeepSpeed: the reference is whole.
    reference = None
    if run.online_keep_ratio is not None:
        reference = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
    arguments = TrainingArguments(
        output_dir=run.folder,
        max_steps=run.steps,
        per_device_train_batch_size=run.micro_batch_rows,
        gradient_accumulation_steps=run.micro_steps,
        gradient_checkpointing=run.recompute,
        learning_rate=1e-6,
        bf16=run.bf16,
        use_cpu=device == "cpu",
        deepspeed=ZERO_3 | {"zero_optimization": ZERO_3["zero_optimization"] | run.zero},
        logging_steps=1,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        dataloader_num_workers=0,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    kind = Trainer if reference is None else _OnlineReference
    trainer = kind(model=model, args=arguments, train_dataset=_Rows(run.rows), callbacks=[_Clock(Path(run.folder))])
    if isinstance(trainer, _OnlineReference):
        assert reference is not None
        assert run.online_keep_ratio is not None
        trainer.reference, trainer.keep_ratio = reference, run.online_keep_ratio
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / (1 << 30) if torch.cuda.is_available() else 0.0
    (Path(run.folder) / "peak_gib.txt").write_text(str(peak), encoding="utf-8")


if __name__ == "__main__":
    train(PeerRun(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
