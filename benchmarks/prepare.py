"""What prepare costs over tokenising alone: reading, splitting, packing, hashing and writing beside raw encoders."""

import os
import re
import tempfile
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from harness.corpora import corpus_name, recipe_of, texts, train_tokenizer, write_jsonl
from harness.report import Bar, options, report
from harness.timing import in_turns
from sentencepiece import SentencePieceProcessor

from megaslm.corpus.tasks import plan_tasks
from megaslm.dataset.output import LocalOutput
from megaslm.preparing.prepare_task import PrepareSpec, run_task
from megaslm.tokenizer.tokenizer import load_tokenizer, tokenizer_facts
from megaslm.tokenizer.word_encoder import fastest_encoder

FULL_BYTES, QUICK_BYTES = 34_000_000, 1_500_000
FULL_VOCABULARY, QUICK_VOCABULARY = 32_000, 2_000
DOCUMENTS_AT_ONCE = 100
SPECIAL = re.compile("</?s>|<unk>")


def main() -> None:
    chosen = options(__doc__)
    # SentencePiece reads `<s>` in a text as characters, tokenizers as the special token.
    documents = [text for text in texts(QUICK_BYTES if chosen.quick else FULL_BYTES) if not SPECIAL.search(text)]
    batches = [documents[start : start + DOCUMENTS_AT_ONCE] for start in range(0, len(documents), DOCUMENTS_AT_ONCE)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = train_tokenizer(folder / "tokenizer", documents, QUICK_VOCABULARY if chosen.quick else FULL_VOCABULARY)
        megabytes = write_jsonl(folder / "text.jsonl", documents) / 1e6
        (task,) = plan_tasks(recipe := recipe_of([folder / "text.jsonl"], folder / "tokenizer", 10**9))
        places = (folder / "dataset", LocalOutput(folder / "dataset"))
        job = PrepareSpec(task, recipe, tokenizer_facts(folder / "tokenizer"), folder / "tokenizer", *places)
        sentencepiece = SentencePieceProcessor(model_proto=model)
        library = load_tokenizer(folder / "tokenizer")

        def prepare() -> int:
            return run_task(job, lambda **_: None).tokens

        def stretches() -> int:
            encoder = fastest_encoder(folder / "tokenizer")
            return sum(len(ids) for batch in batches for ids in encoder.encode(batch))

        def tokenizers() -> int:
            return sum(
                len(each.ids)
                for batch in batches
                for each in library.encode_batch_fast(batch, add_special_tokens=False)
            )

        def raw_sentencepiece() -> int:
            return sum(len(ids) for batch in batches for ids in sentencepiece.encode(batch, num_threads=1))

        tokens = raw_sentencepiece()
        if not tokens == tokenizers() == stretches():
            raise SystemExit("the encoders disagree: nothing was measured")
        alternatives = {
            "prepare, whole": prepare,
            "our encoder alone": stretches,
            "tokenizers alone": tokenizers,
            "SentencePiece alone": raw_sentencepiece,
        }
        times = in_turns(alternatives, repetitions=1 if chosen.quick else 5)
    whole, raw = times["prepare, whole"], times["SentencePiece alone"]
    rows = [
        {
            "what": name,
            "MB/s": megabytes / taken.median,
            "tokens/s": round(tokens / taken.median),
            "speed, to SentencePiece": raw.over(taken),
            "from – to": raw.spread(taken),
        }
        for name, taken in times.items()
    ]
    bars = [
        Bar("speed of prepare, to raw SentencePiece", raw.over(whole), 0.85, "higher"),
        Bar("speed of prepare, to raw tokenizers", times["tokenizers alone"].over(whole), 0.85, "higher"),
    ]
    report(
        f"How much slower is prepare than its tokenizer alone? {megabytes:.1f} MB of {corpus_name()}, {tokens:,} "
        "tokens, one process, processor time",
        rows,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
