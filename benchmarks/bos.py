"""The cost of a BOS at evaluation that a model was not trained with, and of one that is missing.

Models of one shape are trained on the same documentation, for equal tokens, in rows without BOS, with BOS before each
document, and with BOS before each row. Each then reads held-out documents from their beginnings, once with BOS before
them and once without. Without BOS nothing is there to predict a document's first token from. All other tokens are
compared.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from harness.corpora import train_tokenizer
from harness.report import Bar, options, report
from harness.training import train
from torch import Tensor

from megaslm.config.recipe import Bos, Recipe
from megaslm.corpus.tasks import TaskReader, plan_tasks
from megaslm.dataset.manifest import Manifest
from megaslm.dataset.rows import RowReader
from megaslm.model.load import load_pretrained
from megaslm.model.selective_lm import SelectiveLM
from megaslm.preparing.prepare import prepare

SEQ_LEN, VOCAB_SIZE, BATCH_ROWS = 128, 2048, 32
STEPS = 120
BASE = {"name": "documentation", "licence": "PSF-2.0", "seq_len": SEQ_LEN, "heldout_fraction": 0.1}
EVALUATED_WITH = {True: "BOS", False: "no BOS"}
FIRST_TOKENS = 8


class Losses(NamedTuple):
    """Mean losses in nats, by the places of tokens in their documents, counted from 1."""

    first: float | None
    second: float
    second_to_eighth: float
    all_but_first: float


def write_documentation(folder: Path, *, quick: bool) -> None:
    """The documentation of the running Python's standard library, and a tokenizer for it."""
    source = {"domain": "docs", "reader": "python-docs", "keep_fraction": 0.2 if quick else 1.0}
    read = Recipe.model_validate({**BASE, "tokenizer": {"huggingface": "none"}, "sources": [source]})
    documents = [document for task in plan_tasks(read) for document in TaskReader(task).documents()]
    lines = (json.dumps({"text": document.text, "module": document.group}) + "\n" for document in documents)
    (folder / "docs.jsonl").write_text("".join(lines), encoding="utf-8")
    train_tokenizer(folder / "tokenizer", [document.text for document in documents], VOCAB_SIZE)


def recipe(folder: Path, bos: Bos) -> Recipe:
    """A recipe of what `write_documentation` wrote. Modules are held out as a whole."""
    source = {"domain": "docs", "reader": "jsonl", "paths": [str(folder / "docs.jsonl")], "group_field": "module"}
    tokenizer = {"huggingface": str(folder / "tokenizer")}
    return Recipe.model_validate({**BASE, "bos": bos, "tokenizer": tokenizer, "sources": [source]})


def held_out(dataset: Path, manifest: Manifest) -> list[list[int]]:
    """The held-out documents of rows without BOS, with their EOS, cut after SEQ_LEN tokens."""
    reader = RowReader(dataset, "heldout", "docs")
    rows = reader.rows(0, len(reader))["tokens"].astype(np.int64)
    stream = np.append(rows[0, 0], rows[:, 1:])
    documents = np.split(stream, np.flatnonzero(stream == manifest.eos_id) + 1)
    return [document[:SEQ_LEN].tolist() for document in documents if len(document) > FIRST_TOKENS]


def losses_of(model: Path, documents: list[list[int]], manifest: Manifest, *, with_bos: bool) -> Losses:
    """The losses of documents, each read from its beginning in a row of its own."""
    front = [manifest.bos_id] if with_bos else []
    rows = torch.full((len(documents), SEQ_LEN + 1), manifest.eos_id)
    for row, document in zip(rows, documents, strict=True):
        row[: len(front) + len(document)] = torch.tensor(front + document)
    lm = SelectiveLM(load_pretrained(model, dtype=torch.float32), eos_id=manifest.eos_id, document_isolation=True)
    found = lm.eval().measure(rows).losses
    lengths = torch.tensor([len(document) for document in documents])
    place = torch.arange(SEQ_LEN) + (1 if with_bos else 2)
    is_token = place <= lengths[:, None]

    def mean_from(first: int, last: int) -> float:
        return _mean(found, is_token & (first <= place) & (place <= last))

    first_loss = mean_from(1, 1) if with_bos else None
    return Losses(first_loss, mean_from(2, 2), mean_from(2, FIRST_TOKENS), mean_from(2, SEQ_LEN))


def _mean(losses: Tensor, where: Tensor) -> float:
    return float(losses[where].double().mean())


def measure(folder: Path, *, quick: bool) -> dict[tuple[Bos, bool], Losses]:
    """For each kind of rows, and with BOS or without: the losses of a model."""
    write_documentation(folder, quick=quick)
    manifests: dict[Bos, Manifest] = {}
    for bos in get_args(Bos):
        manifests[bos] = prepare(recipe(folder, bos), folder / bos / "tokens", workers=1)
    documents = held_out(folder / "none" / "tokens", manifests["none"])
    found: dict[tuple[Bos, bool], Losses] = {}
    for bos, manifest in manifests.items():
        model = train(
            folder / bos / "trained",
            folder / bos / "tokens",
            vocab_size=VOCAB_SIZE,
            seq_len=SEQ_LEN,
            batch_rows=BATCH_ROWS,
            total_tokens=BATCH_ROWS * SEQ_LEN * (2 if quick else STEPS),
        )
        for with_bos in EVALUATED_WITH:
            found[bos, with_bos] = losses_of(model, documents, manifest, with_bos=with_bos)
    return found


def table(found: Mapping[tuple[Bos, bool], Losses]) -> list[dict[str, str | float]]:
    """One line for each model and each way to evaluate it."""
    return [
        {
            "bos of the rows": bos,
            "evaluated with": EVALUATED_WITH[with_bos],
            "1st token": "" if losses.first is None else losses.first,
            "2nd token": losses.second,
            f"2nd to {FIRST_TOKENS}th": losses.second_to_eighth,
            "all but the 1st": losses.all_but_first,
        }
        for (bos, with_bos), losses in found.items()
    ]


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(Path(temporary), quick=chosen.quick)

    def added(bos: Bos, *, with_bos: bool) -> float:
        """What evaluating otherwise than the rows were adds to the loss of second tokens."""
        return found[bos, with_bos].second - found[bos, not with_bos].second

    bars = [
        Bar("2nd token, nats that BOS adds for rows without it", added("none", with_bos=True), 0.0, "higher"),
        Bar("2nd token, nats that no BOS adds for rows with it", added("document", with_bos=False), 0.0, "higher"),
    ]
    report(
        "What does a BOS cost at evaluation that training did not have, or a missing one? Losses in nats of held-out "
        "documentation of Python's standard library, models of 1M parameters, one seed",
        table(found),
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
