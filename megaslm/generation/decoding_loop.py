"""The forward passes that continue one batch of prompts, until every row has ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megaslm.errors import GenerationFailed
from megaslm.generation.drawing import NOT_A_NUMBER, choose, row_seeds
from megaslm.generation.sampling import Completion, Ended, Sampling, before_stop, seed_of
from megaslm.generation.text_tokens import GrowingText, TextTokens
from megaslm.model.decoding import Cache, DecodingStep

NextLogits = Callable[[DecodingStep], Tensor]
"""A forward pass: (B, V) float32 logits of the tokens that follow each row."""
KeepGoing = Callable[[bool], bool]
"""Takes whether this rank has work and says whether any rank has. All ranks call it equally often."""


@dataclass
class Row:
    """A prompt that is being continued."""

    place: int
    """In the call's list of prompts."""
    prompt: list[int]
    key: int
    sampling: Sampling
    tokens: TextTokens
    generated: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = GrowingText(self.tokens, self.prompt)

    def add(self, token: int) -> Completion | None:
        """Adds a token. Returns the completion if the row ends with it."""
        self.generated.append(token)
        if token in self.tokens.eos_ids:
            return self._completed("eos")
        if self.sampling.stop:
            self._text.add([token])
            if before_stop(self._text.text, self.sampling.stop) is not None:
                return self._completed("stop")
        return self._completed("length") if len(self.generated) == self.sampling.max_new_tokens else None

    def _completed(self, ended: Ended) -> Completion:
        if not self.sampling.stop:
            self._text.add(self.generated[:-1] if ended == "eos" else self.generated)
        text = self._text.end()
        before = before_stop(text, self.sampling.stop)
        if before is not None:
            return Completion(before, len(self.generated), "stop")
        return Completion(text, len(self.generated), ended)


class _Batch:
    """Rows with their prompts at the right of equally long rows of tokens, the longest prompt first."""

    def __init__(self, rows: Sequence[Row], sampling: Sampling, tokens: TextTokens, device: torch.device) -> None:
        # A rank without work continues a row of its own for the sake of the others.
        self.rows: list[Row | None] = list(rows) or [None]
        prompts = [row.prompt for row in rows] or [[tokens.pad_id]]
        self.read = max(map(len, prompts))
        padding = [self.read - len(prompt) for prompt in prompts]
        ids = [[tokens.pad_id] * before + prompt for before, prompt in zip(padding, prompts, strict=True)]
        self.ids = torch.tensor(ids, device=device)
        self._padding = torch.tensor(padding, device=device)[:, None]
        self._columns = torch.arange(self.read + sampling.max_new_tokens, device=device)[None]
        self._seeds = row_seeds([0 if row is None else seed_of(sampling, row.key) for row in self.rows], device)
        self._sampling = sampling
        self._cache = Cache()

    @property
    def has_work(self) -> bool:
        return any(row is not None for row in self.rows)

    def step(self) -> DecodingStep:
        """What the model reads next."""
        columns = self._columns[:, : self.read]
        positions = (columns[:, -self.ids.shape[1] :] - self._padding).clamp(min=0)
        return DecodingStep(self.ids, columns >= self._padding, positions, self._cache)

    def choose(self, logits: Tensor) -> list[int]:
        """The next token of each row, which the model then reads."""
        chosen = choose(logits, self._sampling, self._seeds, self.read - self._padding[:, 0])
        self.ids = chosen.clamp(min=0)[:, None]
        self.read += 1
        return chosen.tolist()

    def drop_ended(self) -> None:
        """Drops rows that have ended, but one of them where no other is left."""
        kept = [number for number, row in enumerate(self.rows) if row is not None] or [0]
        if len(kept) < len(self.rows):
            rows = torch.tensor(kept, device=self.ids.device)
            self._cache.keep_rows(rows)
            self.ids, self._padding, self._seeds = self.ids[rows], self._padding[rows], self._seeds[rows]
            self.rows = [self.rows[number] for number in kept]


def continue_rows(
    next_logits: NextLogits,
    rows: Sequence[Row],
    sampling: Sampling,
    tokens: TextTokens,
    *,
    device: torch.device,
    keep_going: KeepGoing,
    completed: Callable[[Row, Completion], None],
) -> None:
    """Continues rows until all have ended, on any rank; calls `completed` as each ends.

    Raises:
        GenerationFailed: the model's logits hold NaN.
    """
    batch = _Batch(rows, sampling, tokens, device)
    for left in range(sampling.max_new_tokens - 1, -1, -1):
        chosen = batch.choose(next_logits(batch.step()))
        for number, (row, token) in enumerate(zip(batch.rows, chosen, strict=True)):
            if row is None:
                continue
            if token == NOT_A_NUMBER:
                raise GenerationFailed(
                    f"the model's logits hold NaN after token {len(row.prompt) + len(row.generated)} of the text at "
                    f"place {row.place} (key {row.key}); check the model's weights with another program, or export an "
                    "earlier checkpoint"
                )
            completion = row.add(token)
            if completion is not None:
                batch.rows[number] = None
                completed(row, completion)
        if left == 0 or not keep_going(batch.has_work):
            return
        batch.drop_ended()
