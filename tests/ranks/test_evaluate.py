"""`megaslm evaluate` on a small model: equal results in any batches and on any ranks, resumed, compared, refused."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaslm.errors import MegaSLMError
from megaslm.evaluation import work
from megaslm.evaluation.compare import compare, read_results
from tests.forked_cli import run_megaslm
from tests.generating import make_folder
from tests.messages import Says

ITEMS = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    records = [
        {
            "q": f"{'so ' * number}what is {number} + 2?",
            "a": str(number + 2),
            "s": f"It is {number + 2}.",
            "b": "no",
            "e": "",
        }
        for number in range(ITEMS)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def task_file(folder: Path, name: str = "sums", **changes: Any) -> Path:
    settings = {
        "files": ["sums.jsonl"],
        "format": "jsonl",
        "question": "{q}",
        "answer": "{a}",
        "solution": "{s}",
        "prompt": "Q: {question}\nA:",
        "stop": ["\n\n"],
        "max_new_tokens": 12,
        "grader": "letter",
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def written(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "sums.jsonl").read_text().split("\n")[:-1]]


def arguments(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "evaluate",
        str(model),
        "--tasks",
        str(task_file(output.parent)),
        "--data",
        str(data),
        "-o",
        str(output),
        *more,
    ]


def test_results_do_not_depend_on_batches_or_ranks(model: Path, data: Path, tmp_path: Path) -> None:
    sampled = ("--samples", "3", "--temperature", "0.8", "--k", "1,2,3")
    ways: dict[str, tuple[int, tuple[str, ...]]] = {
        "one": (1, ("--batch-rows", "1")),
        "many": (1, ("--batch-rows", "16")),
        "ranks": (2, ("--batch-rows", "3")),
    }
    for way, (ranks, options) in ways.items():
        run_megaslm(*arguments(model, data, tmp_path / way, *sampled, *options), world_size=ranks)
    assert written(tmp_path / "one") == written(tmp_path / "many") == written(tmp_path / "ranks")
    assert [(line["item"], line["sample"]) for line in written(tmp_path / "one")] == [
        (item, sample) for item in range(ITEMS) for sample in range(3)
    ]
    assert len({line["output"] for line in written(tmp_path / "one")}) > ITEMS
    tasks = [read_results(tmp_path / way).tasks for way in ways]
    assert tasks[0] == tasks[1] == tasks[2]
    assert set(tasks[0]["sums"].pass_at) == {1, 2, 3}
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"results.json", "sums.jsonl"}


def test_an_interrupted_evaluation_resumes_where_it_was(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_two = ("--batch-rows", "2")
    run_megaslm(*arguments(model, data, tmp_path / "whole", *by_two))
    answer, asked = work.answer, tmp_path / "asked"

    def counted(*positional: Any, **named: Any) -> Any:
        with asked.open("a") as file:
            file.write(f"{len(positional[1])}\n")
        if len(asked.read_text().splitlines()) == 3:
            raise MegaSLMError("interrupted")
        return answer(*positional, **named)

    monkeypatch.setattr(work, "answer", counted)
    run_megaslm(*arguments(model, data, tmp_path / "parts", *by_two), expect_status=1)
    run_megaslm(*arguments(model, data, tmp_path / "parts", *by_two))
    numbers = [int(line) for line in asked.read_text().splitlines()]
    assert sum(numbers) == ITEMS + numbers[2]
    assert written(tmp_path / "parts") == written(tmp_path / "whole")
    results = (tmp_path / "parts" / "results.json").read_bytes()
    run_megaslm(*arguments(model, data, tmp_path / "parts", *by_two))
    assert (tmp_path / "parts" / "results.json").read_bytes() == results


def test_losses_are_those_of_the_model(model: Path, data: Path, tmp_path: Path) -> None:
    settings = ("--measure", "losses", "--set", "choices=['{a}', '{b}']", "--set", "answer=A{a}", "--set")
    for rows in (1, 8):
        output = tmp_path / f"by {rows}"
        run_megaslm(*arguments(model, data, output, *settings, "answer_pattern=(A)", "--batch-rows", str(rows)))
    one, many = (read_results(tmp_path / f"by {rows}").tasks["sums"] for rows in (1, 8))
    assert one.items == ITEMS
    assert one.bits_per_byte == pytest.approx(many.bits_per_byte, rel=1e-5)
    assert one.nats_per_token is not None
    assert one.nats_per_token.mean > 0
    assert one.choice_accuracy == many.choice_accuracy
    assert one.choice_accuracy is not None


def test_two_evaluations_are_compared(model: Path, data: Path, tmp_path: Path) -> None:
    sampled = ("--samples", "2", "--temperature", "1")
    for name in ("first", "second"):
        run_megaslm(*arguments(model, data, tmp_path / name, *sampled, "--seed", str(len(name))))
    (found,) = compare(tmp_path / "first", tmp_path / "second")
    assert (found.task, found.items) == ("sums", ITEMS)
    assert compare(tmp_path / "first", tmp_path / "first")[0].comparison.p_value == 1
    assert "sums" in run_megaslm("evaluate", "--compare", tmp_path / "first", tmp_path / "second")


def test_a_suite_ends_in_a_table_with_published_rows(model: Path, data: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    row = {"model": "Somebody's", "source": "table 1", "accuracy": {str(task_file(tmp_path)): 50.0}}
    suite.write_text(yaml.safe_dump({"tasks": [str(task_file(tmp_path))], "published": [row]}))
    said = run_megaslm("evaluate", model, "--suite", suite, "--data", data, "-o", tmp_path / "out")
    published, measured = (line.split() for line in said.split("\n") if "published" in line or "measured" in line)
    assert published[-5:] == ["50.0", "50.0", "?", "?", "?"]
    accuracy = read_results(tmp_path / "out").tasks["sums"].accuracy
    assert accuracy is not None
    assert measured[-5:] == [f"{accuracy.mean * 100:.1f}"] * 2 + ["?"] * 3


REFUSED: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "nothing": lambda model, data, folder: ["evaluate"],
    "no output": lambda model, data, folder: ["evaluate", str(model), "--tasks", "gsm8k"],
    "tasks and suite": lambda model, data, folder: ["evaluate", "m", "--tasks", "gsm8k", "--suite", "s", "-o", "o"],
    "lm-eval and tasks": lambda model, data, folder: [
        "evaluate",
        "m",
        "--tasks",
        "gsm8k",
        "--lm-eval",
        "piqa",
        "-o",
        "o",
    ],
    "lm-eval with options of tasks": lambda model, data, folder: [
        *("evaluate", "m", "--lm-eval", "piqa", "-o", "o", "--set", "grader=strict", "--samples", "2")
    ],
    "tasks with options of lm-eval": lambda model, data, folder: arguments(model, data, folder / "out", "--download"),
    "tasks with shots": lambda model, data, folder: arguments(model, data, folder / "out", "--shots", "5"),
    "no data": lambda model, data, folder: arguments(model, folder / "absent", folder / "out"),
    "no model": lambda model, data, folder: arguments(folder / "absent", data, folder / "out"),
    "greedy samples": lambda model, data, folder: arguments(model, data, folder / "out", "--samples", "2"),
    "k": lambda model, data, folder: arguments(model, data, folder / "out", "--k", "0"),
    "prompt too long": lambda model, data, folder: arguments(
        model, data, folder / "out", "--set", "max_new_tokens=120"
    ),
    "no evaluation": lambda model, data, folder: ["evaluate", "--compare", str(folder), str(folder)],
    "something there": lambda model, data, folder: arguments(model, data, data),
    "losses too long": lambda model, data, folder: arguments(
        model, data, folder / "out", "--set", f"solution={'so ' * 200}{{s}}", "--measure=losses"
    ),
    "no letter": lambda model, data, folder: arguments(
        model, data, folder / "out", "--set", "choices=['{a}', '{b}']", "--measure=losses"
    ),
    "empty choice": lambda model, data, folder: arguments(
        model, data, folder / "out", "--set", "choices=['{a}', '{e}']", "--set", "answer=A{a}", "--measure=losses"
    ),
    "no field": lambda model, data, folder: arguments(model, data, folder / "out", "--set", "answer='{right}'"),
    "no setting": lambda model, data, folder: arguments(model, data, folder / "out", "--set", "answer="),
    "grader": lambda model, data, folder: arguments(model, data, folder / "out", "--set", "grader=best"),
    **{
        f"as {name}": lambda model, data, folder, name=name: arguments(  # type: ignore[misc]
            model, data, folder / "out", "--set", f"format={name}"
        )
        for name in ("json", "json-object", "csv", "parquet", "xml")
    },
    "losses": lambda model, data, folder: arguments(
        model, data, folder / "out", "--set", "solution=null", "--measure=losses"
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_refused(mistake: str, model: Path, data: Path, tmp_path: Path, says: Says) -> None:
    before = sorted(data.iterdir())
    said = run_megaslm(*REFUSED[mistake](model, data, tmp_path), expect_status=2)
    says(said.replace(str(model), "MODEL").replace(str(data), "DATA"))
    assert not (tmp_path / "out" / "results.json").exists()
    assert sorted(data.iterdir()) == before


def test_lm_eval_on_several_ranks_is_refused(model: Path, tmp_path: Path, says: Says) -> None:
    options = ("--lm-eval", "piqa", "-o", tmp_path / "out")
    says(run_megaslm("evaluate", model, *options, world_size=2, expect_status=2))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed here")
def test_a_missing_lm_eval_is_told(model: Path, tmp_path: Path, says: Says) -> None:
    options = ("--lm-eval", "piqa", "-o", tmp_path / "out")
    says(run_megaslm("evaluate", model, *options, expect_status=2).replace(str(model), "MODEL"), "EXTRAS=eval")


def test_another_evaluation_in_the_same_folder_is_refused(model: Path, data: Path, tmp_path: Path, says: Says) -> None:
    run_megaslm(*arguments(model, data, tmp_path / "out"))
    results = (tmp_path / "out" / "results.json").read_bytes()
    said = run_megaslm(*arguments(model, data, tmp_path / "out", "--limit", "3"), expect_status=2)
    says(said.replace(str(model), "MODEL").replace(str(data), "DATA"))
    assert (tmp_path / "out" / "results.json").read_bytes() == results


def test_a_refused_evaluation_leaves_its_folder_to_the_next(model: Path, data: Path, tmp_path: Path) -> None:
    run_megaslm(*arguments(model, data, tmp_path / "out", "--set", "max_new_tokens=120"), expect_status=2)
    run_megaslm(*arguments(model, data, tmp_path / "out"))
    assert len(written(tmp_path / "out")) == ITEMS


def test_a_model_without_a_tokenizer_is_refused(data: Path, tmp_path: Path, says: Says) -> None:
    model = make_folder(tmp_path / "model")
    (model / "tokenizer.json").unlink()
    says(run_megaslm(*arguments(model, data, tmp_path / "out"), expect_status=2).replace(str(data), "DATA"))
