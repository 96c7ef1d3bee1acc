"""A backward pass that leaves out unselected tokens: what it would save, and how far its gradient is off.

In the upper layers only the selected rows of the hidden states have a backward pass. A layer keeps its input and its
keys and values, runs anew for the selected rows, which attend to the keys and values of all, and goes back from there.
So the gradient that selected tokens send through the keys and values of other tokens is lost. MegaSLM has no such mode
yet: docs/results.md says what is not known of it.
"""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bos import BATCH_ROWS, SEQ_LEN, STEPS, VOCAB_SIZE, recipe, write_documentation
from harness.references import drawn_model, llama
from harness.report import Bar, options, report
from harness.timing import in_turns
from harness.training import train
from torch import Tensor, nn
from transformers import AttentionInterface

from megaslm.dataset.packing import document_bounds
from megaslm.dataset.rows import RowReader
from megaslm.model.decoder_layers import decoder_layers, prepare_layers
from megaslm.model.documents import Documents, attend
from megaslm.model.load import load_pretrained
from megaslm.preparing.prepare import prepare
from megaslm.slm.measure import measure
from megaslm.slm.token_loss import weighted_loss

_Run = Callable[..., Tensor]
KEEP_RATIO = 0.5
MOST_STEP, LEAST_COSINE = 0.75, 0.98


class Kept:
    """The documents of a micro-batch, with the keys and values of one layer's forward pass."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self.key = self.value = torch.empty(0)


class OfRows:
    """The same, for a pass over some of the tokens: `rows`, (n,) int64, in the order of all."""

    def __init__(self, kept: Kept, rows: Tensor) -> None:
        self.kept, self.rows = kept, rows

    def among_all(self, stored: Tensor, own: Tensor) -> Tensor:
        """(1, heads, T, size): the tokens' own keys, values or queries in their places."""
        everyone = stored.transpose(0, 1).reshape(1, stored.shape[1], -1, stored.shape[3])
        return everyone.index_copy(2, self.rows, own)


def attend_to_all(layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any) -> Any:
    """`attend`, which also serves a layer that runs for some of the tokens."""
    documents = options.pop("documents")
    if isinstance(documents, Kept):
        documents.key, documents.value = key, value
        return attend(layer, query, key, value, mask, documents=documents.documents, **options)
    if isinstance(documents, OfRows):
        kept = documents.kept
        heads, size = query.shape[1], query.shape[3]
        nothing = query.new_zeros(kept.key.shape[0], heads, kept.key.shape[2], size)
        everyone = (documents.among_all(*pair) for pair in ((nothing, query), (kept.key, key), (kept.value, value)))
        attended, _ = attend(layer, *everyone, mask, documents=kept.documents, **options)
        return attended.index_select(1, documents.rows), None
    return attend(layer, query, key, value, mask, documents=documents, **options)


AttentionInterface.register("filtered", attend_to_all)


class FilteredLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, run: Callable[..., Tensor], rows: Tensor, arguments: dict[str, Any]
    ) -> Tensor:
        kept = Kept(arguments["documents"])
        output = run(hidden, **{**arguments, "documents": kept})
        ctx.save_for_backward(hidden)
        ctx.run, ctx.rows, ctx.arguments, ctx.kept = run, rows, arguments, kept
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (hidden,), rows = ctx.saved_tensors, ctx.rows
        own = _rows_of(hidden, rows).detach().requires_grad_()
        positions = tuple(_rows_of(part, rows) for part in ctx.arguments["position_embeddings"])
        changed = {"position_embeddings": positions, "position_ids": None, "documents": OfRows(ctx.kept, rows)}
        with torch.enable_grad():
            output = ctx.run(own, **{**ctx.arguments, **changed})
        torch.autograd.backward(output, _rows_of(gradient, rows))
        found = torch.zeros_like(hidden)
        found.view(-1, hidden.shape[-1]).index_copy_(0, rows, own.grad[0])
        return found, None, None, None


def _rows_of(batch: Tensor, rows: Tensor) -> Tensor:
    return batch.flatten(0, 1).index_select(0, rows)[None]


def filter_layers(lm: Any, rows: Tensor, count: int) -> None:
    """From here on the uppermost `count` layers have a backward pass of these rows only."""
    lm.set_attn_implementation("filtered")
    for layer in decoder_layers(lm)[len(decoder_layers(lm)) - count :]:
        layer.forward = partial(_run_filtered, partial(type(layer).forward, layer), rows)


def _run_filtered(run: _Run, rows: Tensor, hidden: Tensor, **arguments: Any) -> Tensor:
    return FilteredLayer.apply(hidden, run, rows, arguments)


class Batch:
    """Rows of tokens, their documents, and the targets that are trained on."""

    def __init__(self, tokens: Tensor, eos_id: int) -> None:
        self.tokens = tokens
        self.bounds = torch.from_numpy(document_bounds(tokens[:, :-1].numpy(), eos_id))
        self.valid = (tokens[:, :-1] != eos_id).flatten()
        self.rows = self.valid.nonzero().squeeze(1)

    def hidden(self, lm: Any) -> Tensor:
        documents = Documents(self.bounds, len(self.tokens), self.tokens.shape[1] - 1)
        output = lm.model(
            input_ids=self.tokens[:, :-1], position_ids=documents.positions, use_cache=False, documents=documents
        )
        return output.last_hidden_state.flatten(0, 1)

    def losses(self, lm: Any) -> Tensor:
        with torch.no_grad():
            return measure(self.hidden(lm), lm.lm_head.weight, self.tokens[:, 1:].flatten()).losses

    def step(self, lm: Any) -> None:
        """A forward and a backward pass of the chosen rows; the losses of the others without a gradient."""
        hidden, targets = self.hidden(lm), self.tokens[:, 1:].flatten()
        others = torch.ones(len(targets), dtype=torch.bool).index_fill_(0, self.rows, False)
        measure(hidden.detach()[others], lm.lm_head.weight.detach(), targets[others])
        ones = torch.ones(len(self.rows))
        total, *_ = weighted_loss(hidden.index_select(0, self.rows), lm.lm_head.weight, targets[self.rows], ones)
        (total / len(self.rows)).backward()


def gradient_of(lm: Any, batch: Batch) -> Tensor:
    lm.zero_grad()
    batch.step(lm)
    return torch.cat([parameter.grad.double().flatten() for parameter in lm.parameters()])


def cosines(folder: Path, *, quick: bool) -> list[dict[str, str | float]]:
    """Of the exact gradient and the filtered one: rows of documentation, chosen by excess over a better model."""
    write_documentation(folder, quick=quick)
    manifest = prepare(recipe(folder, "none"), folder / "tokens", workers=1)
    steps = {"student": 2 if quick else STEPS, "reference": 4 if quick else 3 * STEPS}
    models = {
        name: load_pretrained(
            train(
                folder / name,
                folder / "tokens",
                vocab_size=VOCAB_SIZE,
                seq_len=SEQ_LEN,
                batch_rows=BATCH_ROWS,
                total_tokens=BATCH_ROWS * SEQ_LEN * count,
                seed=seed,
            ),
            dtype=torch.float32,
        )
        for seed, (name, count) in enumerate(steps.items())
    }
    tokens = RowReader(folder / "tokens", "heldout", "docs").rows(0, BATCH_ROWS)["tokens"].astype(np.int64)
    batch = Batch(torch.from_numpy(tokens), manifest.eos_id)
    for lm in models.values():
        lm.set_attn_implementation("filtered")
    excess = (batch.losses(models["student"]) - batch.losses(models["reference"])).where(batch.valid, -torch.inf)
    batch.rows = excess.topk(int(KEEP_RATIO * batch.valid.sum())).indices.sort().values
    exact, found = gradient_of(models["student"], batch), []
    for count in range(1, len(decoder_layers(models["student"])) + 1):
        filtered = copy.deepcopy(models["student"])
        filter_layers(filtered, batch.rows, count)
        cosine = torch.cosine_similarity(exact, gradient_of(filtered, batch), dim=0)
        found.append({"filtered layers": f"{count} of {len(decoder_layers(filtered))}", "cosine": float(cosine)})
    return found


def times(*, quick: bool) -> list[dict[str, str | float]]:
    """Of a forward and a backward pass, in units of the exact one with full recomputation."""
    architecture = llama(VOCAB_SIZE, 128, 2) if quick else llama(VOCAB_SIZE, 512, 8)
    rows, length = (2, 64) if quick else (4, 512)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCAB_SIZE, (rows, length + 1), generator=generator)
    tokens[:, :: length // 4] = 2
    batch = Batch(tokens, eos_id=2)
    batch.rows = (batch.valid & (torch.rand(batch.valid.shape, generator=generator) < KEEP_RATIO)).nonzero().squeeze(1)
    exact = drawn_model(architecture, 2).train()
    exact.set_attn_implementation("filtered")
    layers = len(decoder_layers(exact))
    models = {"exact, nothing recomputed": copy.deepcopy(exact), "exact, all recomputed": copy.deepcopy(exact)}
    prepare_layers(models["exact, all recomputed"], recompute="full", compiled=False)
    for count in sorted({max(1, 3 * layers // 4), layers}):
        models[f"{count} of {layers} layers filtered"] = filtered = copy.deepcopy(exact)
        filter_layers(filtered, batch.rows, count)
    taken = in_turns({name: partial(batch.step, lm) for name, lm in models.items()}, repetitions=1 if quick else 7)
    whole = taken["exact, all recomputed"]
    return [{"pass": name, "time": own.over(whole), "spread": own.spread(whole)} for name, own in taken.items()]


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        off = cosines(Path(temporary), quick=chosen.quick)
    taken = times(quick=chosen.quick)
    bars = [
        Bar("step, all layers filtered", float(taken[-1]["time"]), MOST_STEP),
        Bar("cosine, all layers filtered", float(off[-1]["cosine"]), LEAST_COSINE, "higher"),
        Bar("step, three quarters filtered", float(taken[-2]["time"]), MOST_STEP),
        Bar("cosine, three quarters filtered", float(off[-2]["cosine"]), LEAST_COSINE, "higher"),
    ]
    empty = dict.fromkeys(("filtered layers", "cosine", "pass", "time", "spread"), "")
    report(
        f"What does a backward pass without unselected tokens save, and how far is its gradient off? k = {KEEP_RATIO}",
        [{**empty, **row} for row in (*off, *taken)],
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
