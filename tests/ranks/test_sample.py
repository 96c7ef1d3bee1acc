"""`megaslm sample`: from a model's answers with programs to rows that fine-tuning trains on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaslm.dataset.manifest import TOKENIZER
from megaslm.dataset.rows import RowReader
from megaslm.evaluation.trajectories import MESSAGES, SUMMARY
from megaslm.tokenizer.tokenizer import load_tokenizer
from tests.completions_server import MODEL, Server, completions_server
from tests.conversations import byte_level_folder
from tests.forked_cli import call_megaslm, run_megaslm
from tests.messages import Says

ITEMS = 5


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with completions_server() as running:
        yield running


def task_file(folder: Path, **changes: Any) -> Path:
    records = [{"q": f"What is {number} plus {number + 1}?", "a": str(2 * number + 1)} for number in range(ITEMS)]
    (folder / "sums.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    settings = {
        "files": ["sums.jsonl"],
        "format": "jsonl",
        "question": "{q}",
        "answer": "{a}",
        "prompt": "<|user|>\n{question}\n<|assistant|>\n",
        "stop": ["```output"],
        "max_new_tokens": 64,
        "grader": "tora",
        "interpreter": True,
        **changes,
    }
    path = folder / "sums.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def arguments(folder: Path, url: str, output: Path, *more: str) -> list[str]:
    return [
        *("sample", MODEL, "--server", url, "--tasks", str(task_file(folder)), "--data", str(folder)),
        *("-o", str(output), "--samples", "8", "--temperature", "0.7", "--sandbox-workers", "1", *more),
    ]


@pytest.fixture(scope="module")
def sampled(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task, and in `output` what one process sampled for it."""
    folder = tmp_path_factory.mktemp("sampled")
    run_megaslm(*arguments(folder, server.url, folder / "output", "--batch-rows", "3"))
    return folder


def test_right_answers_with_programs_become_rows_whose_programs_are_trained(
    server: Server, sampled: Path, tmp_path: Path
) -> None:
    first, second = sampled / "output", tmp_path / "second"
    run_megaslm(*arguments(tmp_path, server.url, second, "--batch-rows", "16"), world_size=2)
    assert (first / MESSAGES).read_bytes() == (second / MESSAGES).read_bytes()
    summary = json.loads((first / SUMMARY).read_text())["tasks"]["sums"]
    assert summary["answers"] == 8 * ITEMS
    assert summary["wrong"] > 0
    assert 0 < summary["kept"] <= 2 * ITEMS  # There are two right programs for each sum.
    assert summary["repeated"] == summary["answers"] - summary["wrong"] - summary["kept"]

    byte_level_folder(tmp_path / "tokenizer")
    recipe = {
        "name": "sampled",
        "licence": "none",
        "seq_len": 64,
        "tokenizer": {"huggingface": str(tmp_path / "tokenizer")},
        "sources": [
            {
                "domain": "tora",
                "reader": "jsonl",
                "paths": [str(first / MESSAGES)],
                "messages_field": "messages",
                "chat_format": "tora",
                "group_field": "problem",
            }
        ],
        "heldout_fraction": 0,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_megaslm("prepare", "--workers", "1", tmp_path / "recipe.yaml", tmp_path / "rows")
    tokenizer = load_tokenizer(tmp_path / "rows" / TOKENIZER)
    reader = RowReader(tmp_path / "rows", "train", "tora")
    rows = reader.rows(0, len(reader))
    trained = "".join(
        tokenizer.decode([int(token) for token, counts in zip(tokens[1:], mask, strict=True) if counts])
        for tokens, mask in zip(rows["tokens"], rows["target_mask"], strict=True)
    )
    assert trained.count("print(") == trained.count("boxed{") == summary["kept"]
    assert "What is" not in trained


@pytest.mark.parametrize("case", ["no interpreter", "greedy", "other settings"])
def test_what_cannot_be_sampled_is_refused(
    case: str, server: Server, sampled: Path, tmp_path: Path, says: Says
) -> None:
    output = tmp_path / "output"
    given = arguments(sampled, server.url, output)
    if case == "no interpreter":
        given += ["--set", "interpreter=false"]
    elif case == "greedy":
        given += ["--temperature", "0"]
    else:
        shutil.copytree(sampled / "output", output)
        given += ["--batch-rows", "3", "--seed", "1"]
    refused = call_megaslm(*given)
    assert refused.returncode == 2
    says(
        refused.stderr.strip().split("\n")[-1],
        {"no interpreter": "sums", "greedy": "8", "other settings": "seed"}[case],
    )
