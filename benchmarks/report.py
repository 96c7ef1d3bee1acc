"""How long a report of a long run takes, in which memory: 10,000 steps, 64 probe rows at 50 steps."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness.commands import timed
from harness.corpora import corpus_name, texts, train_tokenizer
from harness.report import Bar, options, report
from tokenizers import Tokenizer

from megaslm.config.schema import RunConfig
from megaslm.config.source import dump
from megaslm.observe.probe_files import Measurement, ProbeRows, write_measurement, write_rows

STEPS, QUICK_STEPS = 10_000, 200
ROWS, QUICK_ROWS = 64, 4
MEASUREMENTS, QUICK_MEASUREMENTS = 50, 5
SEQ_LEN, QUICK_SEQ_LEN = 2048, 64
BATCH_ROWS, VALIDATIONS, DOMAINS = 512, 100, ("web", "code", "math")
MB = 1e6
# Not ru_maxrss, which a process inherits from the one that started it.
COMMAND = """
from pathlib import Path
from megaslm.cli import main
try:
    main()
finally:
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""
MODEL = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32_000,
}  # fmt: skip


def main() -> None:
    chosen = options(__doc__)
    quick = chosen.quick
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        documents = texts(300_000 if quick else 10_000_000)
        (folder / "run").mkdir()
        train_tokenizer(folder / "run" / "model", documents, 1_500 if quick else 32_000)
        seq_len = QUICK_SEQ_LEN if quick else SEQ_LEN
        _write_run(folder / "run", QUICK_STEPS if quick else STEPS, seq_len)
        rows = QUICK_ROWS if quick else ROWS
        _write_probe(folder / "run", documents, rows, QUICK_MEASUREMENTS if quick else MEASUREMENTS, seq_len)
        found = [_report(folder, number) for number in range(1 if quick else 3)]
    seconds, peak = (float(np.median([one[key] for one in found])) for key in ("seconds", "peak MB"))
    report(
        f"How long does a report of a long run take? {corpus_name()}, rows of {seq_len} targets, one thread",
        found,
        [Bar("seconds", seconds, 5.0), Bar("peak MB", peak, 300.0), Bar("page MB", float(found[0]["page MB"]), 3.0)],
        chosen,
    )


def _write_run(run: Path, steps: int, seq_len: int) -> None:
    batch_tokens = BATCH_ROWS * seq_len
    config = RunConfig.model_validate(
        {
            "run_dir": str(run),
            "model": {"from_pretrained": "model"},
            "data": {"train": "scored", "seq_len": seq_len},
            "train": {
                "objective": "slm",
                "total_tokens": steps * batch_tokens,
                "global_batch_tokens": batch_tokens,
                "micro_batch_rows": 8,
                "lr": 1e-4,
            },
        }
    )
    (run / "config.yaml").write_text(dump(config))
    (run / "model" / "config.json").write_text(json.dumps(MODEL))
    training = {"tokens_seen": steps * batch_tokens, "tokens_selected": int(0.6 * steps * batch_tokens)}
    cost = {"training": {**training, "seconds": 1e6, "ranks": 8, "gpu_hours": 2222.0}}
    (run / "cost.json").write_text(json.dumps(cost))
    generator = np.random.default_rng(0)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps(_step(step, step * batch_tokens, float(generator.normal()))) + "\n")
            if step % (steps // VALIDATIONS) == 0:
                for domain in DOMAINS:
                    file.write(json.dumps(_validation(step, step * batch_tokens, domain)) + "\n")


def _step(step: int, tokens: int, noise: float) -> dict[str, object]:
    loss = 2.0 + 8.0 / (1.0 + step / 100) + 0.05 * noise
    return {
        "kind": "step", "step": step, "tokens": tokens, "loss": loss, "all_loss": loss - 0.2, "selected_ratio": 0.6,
        "learning_rate": 1e-4, "gradient_norm": 1.0 + 0.1 * noise, "tokens_per_second": 1e5 + 1e3 * noise,
        "threshold": -0.1 + 0.01 * noise,
        "excess_quantiles": {"p05": -3.28, "p25": -0.91, "p50": -0.41, "p75": 0.38, "p95": 1.62},
        "domain_ratio": dict.fromkeys(DOMAINS, 0.6), "domain_tokens": dict.fromkeys(DOMAINS, tokens // 3),
        "domain_passes": dict.fromkeys(DOMAINS, step / 1e4),
    }  # fmt: skip


def _validation(step: int, tokens: int, domain: str) -> dict[str, object]:
    loss = 2.0 + 8.0 / (1.0 + step / 100)
    return {
        "kind": "validation", "step": step, "tokens": tokens, "name": "held", "domain": domain, "loss": loss,
        "perplexity": float(np.exp(loss)), "targets": 1_000_000,
    }  # fmt: skip


def _write_probe(run: Path, documents: list[str], rows: int, measurements: int, seq_len: int) -> None:
    tokenizer = Tokenizer.from_file(str(run / "model" / "tokenizer.json"))
    ids = np.concatenate([tokenizer.encode(text, add_special_tokens=False).ids for text in documents])
    tokens = np.resize(ids, (rows, seq_len + 1)).astype(np.int32)
    generator = np.random.default_rng(0)
    probe = ProbeRows(
        tokens=tokens,
        valid=np.ones((rows, seq_len), bool),
        domain=(np.arange(rows) % len(DOMAINS)).astype(np.int32),
        row=np.arange(rows, dtype=np.int64),
        domains=DOMAINS,
        eos_id=int(tokenizer.token_to_id("</s>") or 0),
        description="this benchmark",
        ref_loss=generator.gamma(2.0, 1.5, (rows, seq_len)).astype(np.float16),
    )
    write_rows(run / "probe", probe)
    first, last = (generator.gamma(2.0, scale, (rows, seq_len)) for scale in (4.0, 1.5))
    for number in range(measurements):
        share = number / (measurements - 1)
        losses = (first * (1 - share) + last * share + generator.normal(0, 0.2, last.shape)).clip(0)
        kept = generator.random(last.shape) < 0.6
        step = number * 100
        write_measurement(
            run / "probe",
            Measurement(step, step * BATCH_ROWS * seq_len, probe.sha256, losses.astype(np.float32), "0.6", kept),
        )


def _report(folder: Path, number: int) -> dict[str, str | float | int]:
    page = folder / f"{number}.html"
    with timed() as took:
        ran = subprocess.run(
            [sys.executable, "-c", COMMAND, "report", str(folder / "run"), "-o", str(page)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return {
        "repetition": number + 1,
        **took,
        "peak MB": int(ran.stdout.split()[-2]) * 1024 / MB,
        "page MB": page.stat().st_size / MB,
    }


if __name__ == "__main__":
    main()
