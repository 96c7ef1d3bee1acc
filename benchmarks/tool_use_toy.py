"""A toy: does a small model that is fine-tuned on programs learn to write programs that run?

Every step is a command of any run. The programs come from the annotated calculations of GSM8K's solutions. A base
model reads the problems with their plain solutions (CLM), and is then fine-tuned on conversations with programs
(`objective: sft`). Both answer held-out problems with an interpreter.

MEGASLM_SHARED_DATA names a folder with `problems/gsm8k_train.jsonl` and `problems/gsm8k_test.jsonl`. Without it, and
with --quick, problems of our own take their place.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from harness.gsm8k_programs import Conversations, Problem, conversations
from harness.made_up_problems import made_up_problems
from harness.report import Bar, Options, option_parser, report

from megaslm.sandbox.sandbox import Sandbox

ROOT = Path(__file__).parents[1]
TASK = "tora-gsm8k"
Settings = dict[str, Any]


@dataclass(frozen=True)
class Toy:
    """Sizes: of the model, of its runs in tokens read, and of what it answers."""

    hidden_size: int
    layers: int
    vocab_size: int
    seq_len: int
    batch_rows: int
    base_tokens: int
    sft_tokens: int
    items: int
    max_new_tokens: int


FULL = Toy(
    hidden_size=160,
    layers=4,
    vocab_size=2048,
    seq_len=512,
    batch_rows=8,
    base_tokens=819_200,
    sft_tokens=2_457_600,
    items=100,
    max_new_tokens=256,
)
QUICK = Toy(
    hidden_size=96,
    layers=2,
    vocab_size=420,
    seq_len=256,
    batch_rows=8,
    base_tokens=40_960,
    sft_tokens=368_640,
    items=24,
    max_new_tokens=160,
)
MADE_UP = 600


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--problems", type=Path, metavar="FOLDER", help="with gsm8k_train.jsonl and gsm8k_test.jsonl")
    parser.add_argument("--folder", type=Path, help="keep what is written there, the answers among it")
    arguments = parser.parse_args()
    if arguments.quick and arguments.problems:
        parser.error("--quick has problems of its own; leave out one of --quick and --problems")
    chosen = Options(arguments.quick, arguments.json)
    source = None if chosen.quick else arguments.problems or shared_problems()
    train, test, toy, name = problems(source)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        made = write_data(folder, train, test)
        models = {"base (CLM)": base(folder, toy), "fine-tuned (SFT)": fine_tuned(folder, toy)}
        found = {model: evaluated(folder, path, toy) for model, path in models.items()}
    before, after = (row["answers with a program that ran"] for row in found.values())
    report(
        f"Does a small model learn to write programs that run? A toy on {name}: {len(made.messages):,} conversations "
        f"from {len(train):,} problems; left out: "
        f"{', '.join(f'{reason} {count:,}' for reason, count in made.left_out.items()) or 'none'}",
        [{"model": model, **row} for model, row in found.items()],
        [
            Bar("answers with a program that ran, before", float(before), 0.05),
            Bar("answers with a program that ran, after", float(after), 0.5, "higher"),
        ],
        chosen,
    )


def shared_problems() -> Path | None:
    shared = os.environ.get("MEGASLM_SHARED_DATA")
    return Path(shared) / "problems" if shared else None


def problems(folder: Path | None) -> tuple[list[Problem], list[Problem], Toy, str]:
    """Problems to train on, held-out problems, the sizes that fit them, and what they are."""
    if folder is None:
        return made_up_problems(MADE_UP, seed=0), made_up_problems(QUICK.items, seed=1), QUICK, "made-up problems"
    return _read(folder / "gsm8k_train.jsonl"), _read(folder / "gsm8k_test.jsonl"), FULL, "GSM8K"


def _read(path: Path) -> list[Problem]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Problem(each["question"], each["answer"]) for each in map(json.loads, filter(None, lines))]


def write_data(folder: Path, train: list[Problem], test: list[Problem]) -> Conversations:
    """The texts of both runs, and the items of the evaluation where the task's file looks for them."""
    with Sandbox(workers=1) as sandbox:
        made = conversations(train, sandbox)
    _write_lines(folder / "texts.jsonl", [{"question": each.question, "answer": each.solution} for each in train])
    _write_lines(folder / "conversations.jsonl", [{"messages": messages} for messages in made.messages])
    items = [{"question": each.question, "answer": each.annotated} for each in test]
    _write_lines(folder / "data" / "gsm8k" / "test.jsonl", items)
    return made


def _write_lines(path: Path, records: list[Settings]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def base(folder: Path, toy: Toy) -> Path:
    """A model that has read the problems with their solutions. Its tokenizer knows the conversations."""
    tokenizer: Settings = {"train_sentencepiece": {"vocab_size": toy.vocab_size}}
    source: Settings = {"domain": "tool-use", "messages_field": "messages", "chat_format": "tora"}
    _prepare(folder, "conversations", toy, tokenizer, source)
    tokenizer = {"huggingface": str(folder / "conversations-tokens" / "tokenizer")}
    _prepare(folder, "texts", toy, tokenizer, {"domain": "problems", "template": "{question}\n{answer}"})
    shape = {
        "vocab_size": toy.vocab_size,
        "hidden_size": toy.hidden_size,
        "intermediate_size": 3 * toy.hidden_size,
        "num_layers": toy.layers,
        "num_heads": 4,
        # Longer than a row: a prompt, a whole answer and the output of its program are to fit.
        "max_position_embeddings": 1024,
        "tie_embeddings": True,
    }
    return _train(folder, "base", "texts", toy, "clm", {"from_scratch": shape}, toy.base_tokens)


def fine_tuned(folder: Path, toy: Toy) -> Path:
    """The base model, fine-tuned on the conversations."""
    origin = {"from_pretrained": str(folder / "base-model")}
    return _train(folder, "sft", "conversations", toy, "sft", origin, toy.sft_tokens)


def _prepare(folder: Path, name: str, toy: Toy, tokenizer: Settings, source: Settings) -> None:
    recipe = {
        "name": name,
        "licence": "MIT",
        "seq_len": toy.seq_len,
        "tokenizer": tokenizer,
        "sources": [{"reader": "jsonl", "paths": [str(folder / f"{name}.jsonl")], **source}],
        "heldout_fraction": 0,
    }
    _megaslm("prepare", _write_yaml(folder / f"{name}.yaml", recipe), folder / f"{name}-tokens", "--workers", 1)


def _train(folder: Path, name: str, data: str, toy: Toy, objective: str, origin: Settings, total_tokens: int) -> Path:
    config = {
        "run_dir": str(folder / f"{name}-run"),
        "model": origin,
        "data": {"train": str(folder / f"{data}-tokens"), "seq_len": toy.seq_len, "loader_workers": 0},
        "train": {
            "objective": objective,
            "total_tokens": total_tokens,
            "global_batch_tokens": toy.batch_rows * toy.seq_len,
            "micro_batch_rows": toy.batch_rows,
            "lr": 3e-3,
            "warmup_tokens": total_tokens // 16,
            "min_lr_ratio": 0.1,
        },
        "zero": {"reduce_bucket_size": 2_000_000, "prefetch_bucket_size": 2_000_000},
    }
    _megaslm("train", _write_yaml(folder / f"{name}.yaml", config))
    _megaslm("export", folder / f"{name}-run", folder / f"{name}-model")
    return folder / f"{name}-model"


def evaluated(folder: Path, model: Path, toy: Toy) -> dict[str, float]:
    """Shares of answers and of programs on held-out problems, with the interpreter."""
    output = folder / f"{model.name}-answers"
    data = ("--data", folder / "data", "--limit", toy.items, "--set", f"max_new_tokens={toy.max_new_tokens}")
    _megaslm("evaluate", model, "--tasks", TASK, *data, "-o", output, "--sandbox-workers", 1)
    result = json.loads((output / "results.json").read_text(encoding="utf-8"))["tasks"][TASK]
    answers = [json.loads(line) for line in (output / f"{TASK}.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "answers": len(answers),
        "answers with a program": result["answers_with_programs"] / len(answers),
        "answers with a program that ran": result["answers_with_done_programs"] / len(answers),
        "programs": result["programs"],
        "programs that failed": result["programs_failed"],
        "answers with a box": sum("\\boxed" in answer["output"] for answer in answers) / len(answers),
        "accuracy": result["accuracy"]["mean"],
    }


def _write_yaml(path: Path, content: Settings) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _megaslm(*arguments: object) -> None:
    """Runs a command, and says how long it took."""
    shown = " ".join(map(str, arguments))
    print(f"megaslm {shown}", flush=True)
    began = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "megaslm", *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"megaslm {shown} failed:\n{ran.stdout}{ran.stderr}")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
