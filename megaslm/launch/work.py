"""What is to be started."""

from dataclasses import dataclass, replace
from typing import Literal

Verb = Literal["train", "score", "prepare", "mask", "export"]


@dataclass(frozen=True)
class Work:
    """A verb of `megaslm` with its arguments, word for word."""

    verb: Verb
    arguments: tuple[str, ...]
    is_share: bool = False
    """Whether it is one share of the work, by --part."""
    is_finish: bool = False
    """Whether it makes a dataset of what the shares have left, by --finish."""

    @property
    def words(self) -> tuple[str, ...]:
        """The verb and its arguments."""
        return (self.verb, *self.arguments)

    @property
    def is_for_ranks(self) -> bool:
        """Whether several processes do it together; any other verb runs in one."""
        return self.verb in ("train", "score") and not self.is_finish

    @property
    def can_be_shared(self) -> bool:
        """Whether several jobs may do a part of it each."""
        return self.verb in ("prepare", "score") and not self.is_finish

    def going_on(self) -> "Work":
        """The same, where what starts it may start it again: training then goes on from its newest checkpoint."""
        if self.verb != "train" or "--resume" in self.arguments:
            return self
        return replace(self, arguments=(*self.arguments, "--resume"))
