"""What to generate, and what came of it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from megaslm.errors import ConfigError

Ended = Literal["eos", "stop", "length"]
"""Why a completion ends: at an EOS token, at a stop string, or at `Sampling.max_new_tokens`."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and where a completion ends.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """A completion ends before the first of these strings."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Tokens are drawn from the fewest most likely ones whose probabilities, at this temperature, reach this sum."""
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "stop": (all(self.stop), "strings of at least one character"),
            "temperature": (0.0 <= self.temperature < float("inf"), "0 or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "in (0, 1]"),
        }
        for name, (is_in_range, expected) in ranges.items():
            if not is_in_range:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: must be {expected}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0


@dataclass(frozen=True)
class Prompt:
    """A text to continue, or its token ids."""

    content: str | tuple[int, ...]
    """A text gets a BOS where the model's tokenizer puts one. Ids are taken as they are."""
    key: int
    """Names the item and the number of the sample. With the seed it decides what is drawn for this prompt."""


@dataclass(frozen=True)
class Completion:
    """The continuation of a prompt."""

    text: str
    """Without the stop string, special tokens, and an incomplete character at the end."""
    tokens: int | None
    """Generated tokens, including the EOS and those of a stop string; None where a server does not say."""
    ended: Ended


Finished = Callable[[int, Completion], None]
"""Called in the caller's thread with the place of each prompt that is done, in any order."""


class Generator(Protocol):
    """Continues prompts."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, finished: Finished | None = None
    ) -> list[Completion]:
        """The completions in the order of the prompts; each is also passed to `finished` as soon as it is there.

        Raises:
            DataError: a prompt is empty.
            PromptTooLong: a prompt and `max_new_tokens` exceed the model's context. Nothing was generated.
        """
        ...


def seed_of(sampling: Sampling, key: int) -> int:
    """64 bits that depend on the seed and a prompt's key alone."""
    digest = hashlib.sha256(f"{sampling.seed} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """The text before the first stop string; None where it holds none."""
    found = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(found)] if found else None
