"""Generation on one CPU thread: tokens per second against transformers' own `generate`.

The same model, prompts and float32, greedy, every text of the same length. `generate` continues one prompt at a time,
as a simple script does, or all of them in one batch, padded at the left. Ours also runs with stop strings, which are
looked for after every token but do not occur, and with sampling, whose texts differ. The last row is `megaslm evaluate`
on the same prompts with a model that is loaded already: it reads the items, makes their prompts, generates, grades, and
writes the answers and the results.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from harness.corpora import corpus_name, texts, train_tokenizer
from harness.references import drawn_model, llama
from harness.report import Bar, options, report
from harness.timing import in_turns

import megaslm
from megaslm.config.schema import Architecture
from megaslm.config.task import Task
from megaslm.engine.distributed import World
from megaslm.engine.stop_signal import StopSignal
from megaslm.evaluation.records import Batch, Description
from megaslm.evaluation.request import EvaluationRequest
from megaslm.evaluation.results import write_results
from megaslm.evaluation.work import Engine, EvaluationProcess, PlannedTask, batches_of
from megaslm.generation.local import LocalGenerator
from megaslm.generation.sampling import Prompt, Sampling
from megaslm.generation.text_tokens import TextTokens
from megaslm.jobs.ledger import Ledger, new_run_id
from megaslm.model.plain_lm import PlainLM
from megaslm.model.selective_lm import CausalLM
from megaslm.tasks.items import items_of

SINGLE, BATCHED = "generate, one prompt at a time", "generate, one batch"
OURS, OURS_STOP, OURS_SAMPLED = "ours", "ours, stop strings", "ours, sampled"
EVALUATE = "megaslm evaluate"
TOKENIZER_BYTES = 300_000
FEWEST_PROMPT_TOKENS, MOST_PROMPT_TOKENS = 24, 96


@dataclass(frozen=True)
class Size:
    """How much is generated, by which model."""

    prompts: int
    new_tokens: int
    architecture: Architecture


FULL = Size(16, 48, llama(4_000, 256, 4))
QUICK = Size(6, 12, llama(1_500, 128, 2))


def questions_of(tokens: TextTokens, size: Size) -> list[str]:
    """Real text, in lengths from few to many tokens, not in order."""
    ids = tokens.encode(["\n".join(texts(TOKENIZER_BYTES))])[0]
    step = (MOST_PROMPT_TOKENS - FEWEST_PROMPT_TOKENS) // max(1, size.prompts - 1)
    lengths = [FEWEST_PROMPT_TOKENS + step * (7 * number % size.prompts) for number in range(size.prompts)]
    starts = [500 * number for number in range(size.prompts)]
    return [tokens.decode(ids[start : start + length]).strip() for start, length in zip(starts, lengths, strict=True)]


def evaluate(questions: list[str], generator: LocalGenerator, size: Size, folder: Path) -> Callable[[], None]:
    """What `megaslm evaluate` does with the questions once it has loaded its model."""
    records = [json.dumps({"question": question, "answer": "1"}) for question in questions]
    (folder / "questions.jsonl").write_text("\n".join(records), encoding="utf-8")
    settings = {"files": ["questions.jsonl"], "format": "jsonl", "question": "{question}", "answer": "{answer}"}
    task = Task.model_validate({**settings, "prompt": "{question}", "stop": [], "max_new_tokens": size.new_tokens})
    request = EvaluationRequest("drawn", {"questions": task}, folder, folder / "out", batch_rows=size.prompts)
    world = World(0, 1, torch.device("cpu"))

    def run() -> None:
        shutil.rmtree(request.output, ignore_errors=True)
        ledger_folder = request.output / ".evaluate"
        ledger_folder.mkdir(parents=True)
        planned = [PlannedTask(name, task, tuple(items_of(task, folder))) for name, task in request.tasks.items()]
        batches = [batch for each in planned for batch in batches_of(each, request)]
        ledger, run_id = Ledger(ledger_folder, Batch, place="out"), new_run_id()
        with StopSignal() as stop:
            EvaluationProcess(request, batches, ledger, run_id, world, lambda: Engine(generator), stop, None).run()
        description = Description(
            model=request.model,
            weights_sha256=None,
            server=False,
            measure=request.measure,
            precision="fp32",
            tasks={each.name: each.task_sha256 for each in planned},
            data={each.name: each.data_sha256 for each in planned},
            limit=None,
            samples=1,
            temperature=0.0,
            top_p=1.0,
            seed=0,
            batch_rows=request.batch_rows,
            megaslm_version=megaslm.__version__,
        )
        write_results(request, planned, batches, ledger, description, seconds=0.0)

    return run


def generate(lm: CausalLM, tokens: TextTokens, prompts: list[Prompt], size: Size, batch_rows: int) -> list[list[int]]:
    """The new ids of each prompt, from transformers."""
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch_rows):
        batch = [list(prompt.content) for prompt in prompts[start : start + batch_rows]]
        width = max(map(len, batch))
        ids = torch.tensor([[tokens.pad_id] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        made = lm.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=size.new_tokens,
            do_sample=False,
            pad_token_id=tokens.pad_id,
            eos_token_id=None,
        )
        found += made[:, width:].tolist()
    return found


def measure(size: Size, folder: Path, *, quick: bool) -> tuple[list[dict[str, str | float]], list[Bar]]:
    train_tokenizer(folder, texts(TOKENIZER_BYTES), size.architecture.vocab_size)
    tokens = TextTokens.of_folder(folder)
    # Every text has the same length: no token ends one.
    tokens.eos_ids = frozenset()
    lm = drawn_model(size.architecture, tokens.pad_id)
    questions = questions_of(tokens, size)
    prompts = [Prompt(tuple(ids), number) for number, ids in enumerate(tokens.encode(questions))]
    generator = LocalGenerator.of(PlainLM(lm), tokens, batch_rows=size.prompts)

    def ours(sampling: Sampling) -> Callable[[], list[str]]:
        return lambda: [completion.text for completion in generator.generate(prompts, sampling)]

    greedy = Sampling(size.new_tokens)
    alternatives: dict[str, Callable[[], object]] = {
        SINGLE: lambda: generate(lm, tokens, prompts, size, 1),
        BATCHED: lambda: generate(lm, tokens, prompts, size, size.prompts),
        OURS: ours(greedy),
        OURS_STOP: ours(Sampling(size.new_tokens, stop=("\n\nQuestion:\x00", "```output\x00", "</s>\x00"))),
        OURS_SAMPLED: ours(Sampling(size.new_tokens, temperature=0.8, top_p=0.95)),
        EVALUATE: evaluate(questions, generator, size, folder),
    }
    theirs = generate(lm, tokens, prompts, size, 1)
    expected = []
    for prompt, ids in zip(prompts, theirs, strict=True):
        assert not isinstance(prompt.content, str), "the prompts are token ids"
        expected.append(tokens.decode([*prompt.content, *ids])[len(tokens.decode(list(prompt.content))) :])
    if ours(greedy)() != [text.rstrip("\ufffd") for text in expected]:
        raise SystemExit("ours and generate give different texts: nothing was measured")
    alternatives[EVALUATE]()
    answers = (folder / "out" / "questions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    if [json.loads(answer)["output"] for answer in answers] != ours(greedy)():
        raise SystemExit("evaluate and ours give different texts: nothing was measured")
    times = in_turns(alternatives, repetitions=3 if quick else 5, clock=time.process_time)
    count = size.prompts * size.new_tokens
    rows: list[dict[str, str | float]] = [
        {
            "generation": name,
            "tokens/s": count / taken.median,
            "speed, to single": times[SINGLE].over(taken),
            "speed, to batch": times[BATCHED].over(taken),
            "from – to": times[BATCHED].spread(taken),
        }
        for name, taken in times.items()
    ]
    bars = [
        Bar("speed of ours, to generate with one prompt at a time", times[SINGLE].over(times[OURS]), 3.0, "higher"),
        Bar("speed of ours, to one batched generate", times[BATCHED].over(times[OURS]), 0.9, "higher"),
        Bar("speed with stop strings, to one batched generate", times[BATCHED].over(times[OURS_STOP]), 0.9, "higher"),
        Bar(
            "speed of evaluate, to generate with one prompt at a time",
            times[SINGLE].over(times[EVALUATE]),
            3.0,
            "higher",
        ),
        Bar("speed of evaluate, to one batched generate", times[BATCHED].over(times[EVALUATE]), 0.9, "higher"),
    ]
    return rows, bars


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    size = QUICK if chosen.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        rows, bars = measure(size, Path(folder) / "tokenizer", quick=chosen.quick)
    shape = size.architecture
    report(
        f"How many tokens per second are generated on one CPU thread? {corpus_name()}, {size.prompts} prompts of "
        f"{FEWEST_PROMPT_TOKENS} to {MOST_PROMPT_TOKENS} tokens, {size.new_tokens} new ones each, llama of "
        f"{shape.num_layers} layers, width {shape.hidden_size}, V={shape.vocab_size}, fp32, processor time",
        rows,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
