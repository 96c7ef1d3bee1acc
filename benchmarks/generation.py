"""Generation on one CPU thread: tokens per second against transformers' own `generate`.

The same model, prompts and float32, greedy, every text of the same length. `generate` continues one prompt at a time,
as a simple script does, or all of them in one batch, padded at the left. Ours also runs with stop strings, which are
looked for after every token but do not occur, and with sampling, whose texts differ.
"""

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

from megaslm.config.schema import Architecture
from megaslm.generation.local import LocalGenerator
from megaslm.generation.sampling import Prompt, Sampling
from megaslm.generation.text_tokens import TextTokens
from megaslm.model.plain_lm import PlainLM
from megaslm.model.selective_lm import CausalLM

SINGLE, BATCHED = "generate, one prompt at a time", "generate, one batch"
OURS, OURS_STOP, OURS_SAMPLED = "ours", "ours, stop strings", "ours, sampled"
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


def prompts_of(tokens: TextTokens, size: Size) -> list[Prompt]:
    """Of real text, in lengths from few to many tokens, not in order."""
    ids = tokens.encode(["\n".join(texts(TOKENIZER_BYTES))])[0]
    step = (MOST_PROMPT_TOKENS - FEWEST_PROMPT_TOKENS) // max(1, size.prompts - 1)
    lengths = [FEWEST_PROMPT_TOKENS + step * (7 * number % size.prompts) for number in range(size.prompts)]
    starts = [500 * number for number in range(size.prompts)]
    return [
        Prompt(tuple(ids[start : start + length]), number)
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]


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
    prompts = prompts_of(tokens, size)
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
    }
    theirs = generate(lm, tokens, prompts, size, 1)
    expected = [
        tokens.decode([*prompt.content, *ids])[len(tokens.decode(list(prompt.content))) :]
        for prompt, ids in zip(prompts, theirs, strict=True)
    ]
    if ours(greedy)() != [text.rstrip("\ufffd") for text in expected]:
        raise SystemExit("ours and generate give different texts: nothing was measured")
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
