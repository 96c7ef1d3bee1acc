"""`evaluate --lm-eval` with tasks of local files: the same log-likelihoods as MegaSLM's own, and what is refused."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megaslm.config.task import HarnessTask
from megaslm.errors import UserMistake
from megaslm.evaluation.compare import read_results
from megaslm.evaluation.harness.order import Order
from megaslm.generation.log_likelihood import log_likelihoods
from megaslm.tasks.task_files import load_suite
from megaslm.tokenizer.plain_folder import write_plain_folder
from tests.forked_cli import run_megaslm
from tests.generating import EOS, TEXT, load, make_folder, make_tokenizer
from tests.launched import ROOT
from tests.messages import Says

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval (EXTRAS=eval)")

BOS, ITEMS = "<s>", 24
CONTEXTS = [
    "the answer is",
    "the answer is ",
    "the answer is \n\t ",
    "the answ",  # Merges across the border.
    "12 + 3",
    "naïve 😀",
    "日本語の",
    "e\u0301 \u2028 \u00a0",
    "",
    "the sum of two and three is five, so the answer is",
]
CONTINUATIONS = [" five", "er is five", "five", "0 = 42", " é", "文章", "\n\nthree", "  two and"]
QUESTIONS = ["what is two?", "naïve 😀?", "日本語の文章?", "sum of two and three ?"]
CHOICES = ["five", "the answer is five", "é", "日本語の文章。", "12 + 30 = 42", "😀😀"]


def choices_of(number: int) -> list[str]:
    return [CHOICES[(number + step) % len(CHOICES)] for step in range(3)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of lm-eval with their data: any pairs, and questions as MegaSLM's own tasks ask them."""
    folder = tmp_path_factory.mktemp("tasks")
    pairs = [{"context": context, "choices": CONTINUATIONS, "right": 0} for context in CONTEXTS]
    write_task(folder, "pairs", pairs, doc_to_text="{{context}}", target_delimiter="")
    questions = [
        {
            "question": f"{QUESTIONS[number % len(QUESTIONS)]} {number}",
            "choices": choices_of(number),
            "right": number % 3,
            "letter": "ABC"[number % 3],
            **dict(zip("abc", choices_of(number), strict=True)),
        }
        for number in range(ITEMS)
    ]
    write_task(folder, "questions", questions, doc_to_text="Question: {{question}}\nAnswer:")
    return folder


def write_task(folder: Path, name: str, records: list[dict[str, Any]], **settings: object) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm", "acc_bytes")],
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture(scope="module", params=["bytes", "bytes after BOS", "words after BOS"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `export` writes it: without BOS, with BOS before a text, with a tokenizer in the manner of Llama's."""
    dataset = tmp_path_factory.mktemp("tokenizer")
    if request.param == "words after BOS":
        make_llama_like(dataset)
    else:
        make_tokenizer(dataset)
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    tokenizer.add_special_tokens([BOS])
    tokenizer.save(str(dataset / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "bos_token": BOS}
    (dataset / "tokenizer_config.json").write_text(json.dumps(config))
    puts_bos = request.param != "bytes"
    bos = {"bos_token_id": tokenizer.token_to_id(BOS)} if puts_bos else {}
    size = tokenizer.get_vocab_size()
    eos = {"eos_token_id": tokenizer.token_to_id(EOS)}
    model = make_folder(
        tmp_path_factory.mktemp("model") / "model", vocab_size=size, max_position_embeddings=256, **bos, **eos
    )
    write_plain_folder(dataset, model, names_bos=puts_bos, puts_bos=puts_bos)
    return model


def make_llama_like(folder: Path) -> None:
    """Words with a sign in place of the space before them, also before the first one, and bytes for what is unknown."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", EOS, *bytes_], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def evaluated(model: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "output"
    options = ("--include-path", tasks, "--batch-rows", "5", "-o", output)
    said = run_megaslm("evaluate", model, "--lm-eval", "pairs,questions", *options)
    assert "acc_norm" in said
    return output


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_log_likelihoods_are_those_of_lm_eval(model: Path, evaluated: Path) -> None:
    pairs = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]
    ours = iter(log_likelihoods(*load(model), pairs))
    for line in lines_of(evaluated / "pairs.jsonl"):
        for nats, is_greedy in line["responses"]:
            own = next(ours)
            assert own.nats == pytest.approx(nats, abs=1e-4)
            assert own.is_greedy == is_greedy
    assert next(ours, None) is None


def test_choices_are_those_of_lm_eval(model: Path, evaluated: Path, tasks: Path, tmp_path: Path) -> None:
    settings = {
        "files": ["questions.jsonl"],
        "format": "jsonl",
        "question": "{question}",
        "answer": "{letter}",
        "choices": ["{a}", "{b}", "{c}"],
        "grader": "letter",
    }
    own_task = tmp_path / "questions.yaml"
    own_task.write_text(yaml.safe_dump(settings))
    options = ("--measure", "losses", "--data", tasks, "-o", tmp_path / "own")
    run_megaslm("evaluate", model, "--tasks", own_task, *options)
    own, theirs = (read_results(folder).tasks["questions"] for folder in (tmp_path / "own", evaluated))
    for ours, line in zip(
        lines_of(tmp_path / "own" / "questions.jsonl"), lines_of(evaluated / "questions.jsonl"), strict=True
    ):
        assert ours["choice_nats"] == pytest.approx([-nats for nats, _ in line["responses"]], abs=1e-4)
    assert own.choice_accuracy == theirs.accuracy
    assert own.choice_accuracy is not None
    assert own.choice_accuracy_per_byte is not None
    assert own.choice_accuracy.mean == pytest.approx(theirs.metrics["acc"])
    assert own.choice_accuracy_per_byte.mean == pytest.approx(theirs.metrics["acc_bytes"])
    per_character = [
        min(range(3), key=lambda place: ours["choice_nats"][place] / len(choices_of(number)[place])) == number % 3
        for number, ours in enumerate(lines_of(tmp_path / "own" / "questions.jsonl"))
    ]
    assert sum(per_character) / ITEMS == pytest.approx(theirs.metrics["acc_norm"])


def test_an_evaluation_is_whole_and_done_once(model: Path, evaluated: Path, tasks: Path) -> None:
    assert {path.name for path in evaluated.iterdir()} == {
        *("results.json", "lm-eval.json", "lm-eval.log", "pairs.jsonl", "questions.jsonl")
    }
    before = (evaluated / "results.json").read_bytes()
    options = ("--include-path", tasks, "--batch-rows", "5", "-o", evaluated)
    run_megaslm("evaluate", model, "--lm-eval", "pairs,questions", *options)
    assert (evaluated / "results.json").read_bytes() == before


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


def test_data_that_is_not_here_is_not_fetched_unasked(plain: Path, tmp_path: Path, says: Says) -> None:
    said = run_megaslm("evaluate", plain, "--lm-eval", "arc_easy", "-o", tmp_path / "out", expect_status=2)
    says(said, "arc_easy", "--download")
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_task_that_fails_ends_with_the_log_and_keeps_the_others(plain: Path, tmp_path: Path) -> None:
    settings = {"doc_to_text": "{{context}}", "target_delimiter": ""}
    intact = {"context": "a", "choices": ["b", "c"], "right": 0}
    write_task(tmp_path, "intact", [intact], **settings)
    # lm-eval asserts that a continuation has tokens, except where another one has the same context.
    empty = {"context": "the", "choices": ["two and three", ""], "right": 0}
    write_task(tmp_path, "broken", [intact, empty], **settings)
    options = ("--include-path", tmp_path, "-o", tmp_path / "out")
    for left in (["intact", "broken"], ["broken"]):
        said = run_megaslm("evaluate", plain, "--lm-eval", "intact,broken", *options, expect_status=1)
        assert str(tmp_path / "out" / "lm-eval.log") in said
        assert "AssertionError" in said
        order = json.loads((tmp_path / "out" / ".evaluate" / "order.json").read_text())
        assert list(order["tasks"]) == left


def test_lm_eval_has_the_tasks_that_are_named(process: Any) -> None:
    suite = load_suite(ROOT / "configs" / "eval" / "general.yaml")
    assert {*suite.names, "humaneval", "mbpp"} <= set(process.TaskManager().all_tasks)


REFUSED: dict[str, tuple[HarnessTask, dict[str, Any]]] = {
    "unsafe": (HarnessTask(), {"unsafe_code": True}),
    "metric": (HarnessTask(metric="f1"), {}),
    "filter": (HarnessTask(metric="acc,strict"), {}),
    "shots": (HarnessTask(shots=3), {"num_fewshot": 0}),
    "no data": (HarnessTask(), {"dataset_kwargs": {"data_files": {"test": "/nowhere.jsonl"}}}),
}


@pytest.fixture(scope="module")
def process() -> Any:
    from megaslm.evaluation.harness import process

    return process


@pytest.mark.parametrize("mistake", [*REFUSED, "unknown"])
def test_a_mistake_is_refused_before_the_model_is_loaded(
    mistake: str, process: Any, tmp_path: Path, says: Says
) -> None:
    setting, changes = REFUSED.get(mistake, (HarnessTask(), {}))
    write_task(tmp_path, "mine", [{"context": "a", "choices": ["b"], "right": 0}], doc_to_text="a", **changes)
    order = Order(
        model=str(tmp_path / "no model"),
        tasks={"min" if mistake == "unknown" else "mine": setting},
        include_path=str(tmp_path),
        dtype="float32",
        device="cpu",
        batch_rows=1,
        limit=None,
        download=False,
        unsafe_programs=False,
    )
    with pytest.raises(UserMistake) as refused:
        process._do(order, tmp_path)
    says(str(refused.value), "min")
