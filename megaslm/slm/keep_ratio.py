"""The share of targets that is kept, over the tokens read."""

from dataclasses import dataclass
from decimal import Decimal

_STEP = Decimal("0.000001")


@dataclass(frozen=True)
class KeepRatio:
    """k in (0, 1]; on the way to it, falling in a straight line from 1 over `warmup_tokens` targets."""

    target: Decimal
    warmup_tokens: int = 0

    def at(self, tokens: int) -> Decimal:
        """The ratio of the step that begins when `tokens` targets have been read; a decimal of six places."""
        if tokens >= self.warmup_tokens:
            return self.target
        return (1 - (1 - self.target) * tokens / self.warmup_tokens).quantize(_STEP)
