"""How much of what a reference selects does a reference of another vocabulary select, too?

Three references of one shape are trained on the same documentation, for equal bytes of text: one with the tokenizer of
the rows, one with this tokenizer and another seed, one with a byte-level tokenizer of another size. The last one scores
with `--align`. A model that was trained on the noisy corpus, the sources of Python, gives the losses from which theirs
are subtracted. The top k of all targets by the first two differ as two seeds do: no alignment can do better.
"""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from harness.corpora import train_tokenizer
from harness.report import Bar, options, report
from harness.training import train
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megaslm.config.recipe import Recipe
from megaslm.corpus.tasks import TaskReader, plan_tasks
from megaslm.dataset.manifest import read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.model.load import load_pretrained
from megaslm.model.selective_lm import SelectiveLM
from megaslm.preparing.prepare import prepare
from megaslm.scoring.job import score
from megaslm.scoring.request import ScoreRequest, ScoreSettings
from megaslm.slm.valid_targets import valid_targets

SEQ_LEN, VOCAB_SIZE, OTHER_VOCAB_SIZE, BATCH_ROWS, STEPS = 128, 2048, 1400, 32, 160
KEEP_RATIOS = (0.2, 0.6)
BASE = {"licence": "PSF-2.0", "seq_len": SEQ_LEN, "heldout_fraction": 0.0}
SOURCES = {"docs": ("python-docs", 1.0), "source": ("python-source", 0.02)}


class Excess(NamedTuple):
    """A reference's losses of all valid targets of the corpus."""

    ref_loss: NDArray[np.float32]
    """(targets,) in nats."""
    nats_per_byte: float


def documents_of(name: str, *, quick: bool) -> list[str]:
    reader, fraction = SOURCES[name]
    source = {"domain": name, "reader": reader, "keep_fraction": fraction * (0.2 if quick else 1.0)}
    read = Recipe.model_validate({**BASE, "name": name, "tokenizer": {"huggingface": "none"}, "sources": [source]})
    return [document.text for task in plan_tasks(read) for document in TaskReader(task).documents()]


def byte_level_tokenizer(folder: Path, documents: list[str]) -> None:
    """A byte-level BPE as those of the GPT-2 family."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=OTHER_VOCAB_SIZE, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def prepared(folder: Path, name: str, documents: list[str], tokenizer: Path) -> Path:
    """A dataset of these documents, with BOS before each: all references then read a document from the same place."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    source = {"domain": "text", "reader": "jsonl", "paths": [str(folder / f"{name}.jsonl")]}
    recipe = {
        **BASE,
        "name": name,
        "bos": "document",
        "tokenizer": {"huggingface": str(tokenizer)},
        "sources": [source],
    }
    output = folder / f"{name}-{tokenizer.name}"
    prepare(Recipe.model_validate(recipe), output, workers=1)
    return output


def measure(folder: Path, *, quick: bool) -> tuple[dict[str, Excess], NDArray[np.float32]]:
    """The references by name, and the model's losses of the same targets."""
    docs, source = documents_of("docs", quick=quick), documents_of("source", quick=quick)
    own, other = folder / "own", folder / "other"
    train_tokenizer(own, [*docs, *source], VOCAB_SIZE)
    byte_level_tokenizer(other, [*docs, *source])
    corpus = prepared(folder, "source", source, own)
    curated = {tokenizer: prepared(folder, "docs", docs, tokenizer) for tokenizer in (own, other)}
    steps = 4 if quick else STEPS

    def trained(name: str, dataset: Path, vocab_size: int, total_tokens: int, seed: int = 0) -> Path:
        shape = {"vocab_size": vocab_size, "seq_len": SEQ_LEN, "batch_rows": BATCH_ROWS}
        return train(folder / name, dataset, total_tokens=total_tokens, seed=seed, **shape)

    tokens = steps * BATCH_ROWS * SEQ_LEN
    targets = {key: read_manifest(dataset).splits["train"]["text"].tokens for key, dataset in curated.items()}
    # Equal passes over the same text, in whole steps.
    of_other = round(tokens * targets[other] / targets[own] / (BATCH_ROWS * SEQ_LEN)) * BATCH_ROWS * SEQ_LEN
    base = trained("base", corpus, VOCAB_SIZE, tokens)
    references = {
        "same tokenizer": (trained("first", curated[own], VOCAB_SIZE, tokens), False),
        "same tokenizer, another seed": (trained("second", curated[own], VOCAB_SIZE, tokens, seed=1), False),
        "another tokenizer": (trained("third", curated[other], OTHER_VOCAB_SIZE, of_other), True),
    }
    text_bytes = sum(len(text.encode("utf-8")) for text in source)
    found: dict[str, Excess] = {}
    for name, (reference, align) in references.items():
        scored = folder / f"scored-{name}"
        score(ScoreRequest(reference, corpus, scored, ScoreSettings(align=align)))
        reader = RowReader(scored, "train", "text")
        rows = reader.rows(0, len(reader))
        valid = valid_targets(rows["tokens"], read_manifest(corpus).eos_id)
        losses = rows["ref_loss"][valid].astype(np.float32)
        found[name] = Excess(losses, float(losses.sum(dtype=np.float64)) / text_bytes)
    lm = load_pretrained(base, dtype=torch.float32).eval()
    model = SelectiveLM(lm, eos_id=read_manifest(corpus).eos_id, document_isolation=True)
    return found, model.measure(torch.from_numpy(rows["tokens"].astype(np.int64))).losses.numpy()[valid]


def top(values: NDArray[np.float32], keep_ratio: float) -> NDArray[np.bool_]:
    """The largest share of the values."""
    count = round(keep_ratio * len(values))
    mask = np.zeros(len(values), dtype=bool)
    mask[np.argpartition(-values, count)[:count]] = True
    return mask


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        found, losses = measure(Path(temporary), quick=chosen.quick)
    first = found["same tokenizer"]
    rows: list[dict[str, str | float]] = []
    overlaps: dict[tuple[str, float], float] = {}
    for name, reference in found.items():
        row: dict[str, str | float] = {"reference": name, "nats per byte": reference.nats_per_byte}
        row["correlation of losses"] = float(np.corrcoef(first.ref_loss, reference.ref_loss)[0, 1])
        for k in KEEP_RATIOS:
            theirs, ours = (top(losses - each.ref_loss, k) for each in (first, reference))
            overlaps[name, k] = float((theirs & ours).sum() / theirs.sum())
            row[f"overlap, k = {k}"] = overlaps[name, k]
        rows.append(row)
    random = {"reference": "random", "nats per byte": "", "correlation of losses": ""}
    rows.append({**random, **{f"overlap, k = {k}": k for k in KEEP_RATIOS}})
    bars = [
        Bar(
            f"overlap beyond random, relative to another seed's, k = {k}",
            (overlaps["another tokenizer", k] - k) / (overlaps["same tokenizer, another seed", k] - k),
            0.5,
            "higher",
        )
        for k in KEEP_RATIOS
    ]
    report(
        "Which share of the targets that a reference selects does a reference of another vocabulary select? Models of "
        f"1M parameters, {len(losses):,} targets of sources of Python",
        rows,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
