"""Completions by a model in this process."""

from collections.abc import Callable, Sequence

import torch

from megaslm.errors import GenerationFailed, ModelError, PromptTooLong
from megaslm.generation.decoding_loop import KeepGoing, NextLogits, Row, continue_rows
from megaslm.generation.sampling import Completion, Finished, Prompt, Sampling
from megaslm.generation.text_tokens import TextTokens
from megaslm.model.plain_lm import PlainLM

_SHOWN_PROMPTS = 5


class LocalGenerator:
    """Continues prompts in batches of similar length.

    A completion depends on its prompt, the sampling and the model; in fp32 not on the batch and the number of ranks.
    """

    def __init__(
        self,
        next_logits: NextLogits,
        tokens: TextTokens,
        *,
        context_tokens: int,
        device: torch.device,
        batch_rows: int = 16,
    ) -> None:
        """`next_logits` is a forward pass of a model on `device` that was built for `context_tokens`."""
        self._next_logits = next_logits
        self._tokens = tokens
        self._context_tokens = context_tokens
        self._device = device
        self._batch_rows = batch_rows

    @classmethod
    def of(cls, lm: PlainLM, tokens: TextTokens, *, batch_rows: int = 16) -> "LocalGenerator":
        """Of a model and its tokenizer. Raises ModelError where the model has no embeddings for all of its ids."""
        if tokens.vocab_size > lm.vocab_size:
            raise ModelError(
                f"the model has a vocabulary of {lm.vocab_size}, its tokenizer one of {tokens.vocab_size}; put the "
                "tokenizer beside the model that it was trained with"
            )
        return cls(lm.next_logits, tokens, context_tokens=lm.context_tokens, device=lm.device, batch_rows=batch_rows)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        finished: Finished | None = None,
        keep_going: KeepGoing = bool,
    ) -> list[Completion]:
        """The completions in the order of the prompts; each is also passed to `finished` as soon as it is there.

        The longest prompts come first, so that a lack of memory shows at once.

        Args:
            prompts: texts or ids; none is empty.
            sampling: how to continue them.
            finished: called with the place of each prompt that is done.
            keep_going: on several ranks that must run equally many forward passes, as under ZeRO-3: whether any rank
                has work. `sampling` is then the same on all ranks.

        Raises:
            DataError: a prompt is empty, or the tokenizer has no ids for it.
            PromptTooLong: a prompt and `max_new_tokens` exceed the model's context. Nothing was generated.
            GenerationFailed: a batch does not fit into memory, or the model's logits hold NaN.
        """
        encoded = self._tokens.encode_prompts(prompts)
        self._require_fit(prompts, encoded, sampling)
        rows = [
            Row(place, ids, prompt.key, sampling, self._tokens)
            for place, (ids, prompt) in enumerate(zip(encoded, prompts, strict=True))
        ]
        rows.sort(key=lambda row: -len(row.prompt))
        done: dict[int, Completion] = {}

        def completed(row: Row, completion: Completion) -> None:
            done[row.place] = completion
            if finished is not None:
                finished(row.place, completion)

        while keep_going(bool(rows)):
            batch, rows = rows[: self._batch_rows], rows[self._batch_rows :]
            self._continue(batch, sampling, keep_going, completed)
        return [done[place] for place in range(len(prompts))]

    def _continue(
        self,
        batch: Sequence[Row],
        sampling: Sampling,
        keep_going: KeepGoing,
        completed: Callable[[Row, Completion], None],
    ) -> None:
        try:
            continue_rows(
                self._next_logits,
                batch,
                sampling,
                self._tokens,
                device=self._device,
                keep_going=keep_going,
                completed=completed,
            )
        except torch.OutOfMemoryError as error:
            longest = max((len(row.prompt) for row in batch), default=1)
            raise GenerationFailed(
                f"{len(batch)} texts of up to {longest + sampling.max_new_tokens} tokens at once do not fit into the "
                f"memory of {self._device}; lower the number of texts at once ({error})"
            ) from error

    def _require_fit(self, prompts: Sequence[Prompt], encoded: Sequence[list[int]], sampling: Sampling) -> None:
        most = self._context_tokens - sampling.max_new_tokens
        places = [place for place, ids in enumerate(encoded) if len(ids) > most]
        if places:
            longest = max(places, key=lambda place: len(encoded[place]))
            raise PromptTooLong(
                f"{len(places)} of {len(prompts)} prompts are too long, at the places "
                f"{', '.join(map(str, places[:_SHOWN_PROMPTS]))}{', …' if len(places) > _SHOWN_PROMPTS else ''}; the "
                f"longest (key {prompts[longest].key}) has {len(encoded[longest])} tokens, and the model's context of "
                f"{self._context_tokens} leaves {max(0, most)} beside max_new_tokens = {sampling.max_new_tokens}: "
                "shorten the prompts or lower max_new_tokens",
                places,
                longest_tokens=len(encoded[longest]),
                context_tokens=self._context_tokens,
            )
