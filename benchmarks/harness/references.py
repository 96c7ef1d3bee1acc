"""Real text as datasets, and models to score them with."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from harness.corpora import recipe_of, texts, train_tokenizer, write_jsonl
from torch import Tensor, nn

from megaslm.config.schema import Architecture
from megaslm.config.section import Split
from megaslm.dataset.rows import RowReader
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import CausalLM
from megaslm.preparing.prepare import prepare

# Of the sources of Python, 1.5 MB are too few for 32,000 pieces.
_TOKENIZER_BYTES = 3_000_000


class Whole:
    """A model that no one divides."""

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[object]:
        return nullcontext()


def prepare_text(
    folder: Path, text_bytes: int, *, vocab_size: int, seq_len: int, parts: int = 1, heldout_fraction: float = 0.0
) -> Path:
    """A dataset of equal parts, each of the same documents, about so many bytes of them or all there are."""
    train_tokenizer(folder / "tokenizer", texts(_TOKENIZER_BYTES), vocab_size)
    documents = texts(text_bytes)
    files = [folder / f"{number}.jsonl" for number in range(parts)]
    for path in files:
        write_jsonl(path, documents)
    recipe = recipe_of(files, folder / "tokenizer", files[0].stat().st_size, seq_len)
    prepare(recipe.model_copy(update={"heldout_fraction": heldout_fraction}), folder / "dataset", workers=1)
    return folder / "dataset"


def first_rows(dataset: Path, count: int, split: Split = "train") -> Tensor:
    """Tokens, (count, L+1) int64."""
    rows = RowReader(dataset, split, "text").rows(0, count)["tokens"]
    return torch.from_numpy(rows.astype("int64"))


def llama(vocab_size: int, width: int, layers: int) -> Architecture:
    """A shape with heads of 64, two of them to one of keys and values."""
    return Architecture(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_layers=layers,
        num_heads=width // 64,
        num_kv_heads=width // 128,
        max_position_embeddings=2048,
    )


def drawn_model(architecture: Architecture, eos_id: int, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Random weights, the same each time, in evaluation mode."""
    lm = build_from_shape(architecture, eos_id=eos_id, dtype=dtype)
    draw_weights(lm, seed=0, standard_deviation=architecture.initializer_range, sharding=Whole())
    return lm.eval()
