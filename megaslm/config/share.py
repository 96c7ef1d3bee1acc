"""`3/400`: which part of a work that many jobs do together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from megaslm.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The `number`-th of `count` shares, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """`3/400` as a share. Raises ConfigError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--part {text}: expected N/COUNT with 1 ≤ N ≤ COUNT, such as 3/400")
        return cls(int(match[1]), int(match[2]))

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every `count`-th item, so that what lies side by side is shared out evenly."""
        return items[self.number - 1 :: self.count]
