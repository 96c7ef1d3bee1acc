"""How many targets have each loss. Losses are stored as float16, of which there are so few that all can be counted."""

import base64
import binascii
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The bit patterns of the finite float16 from 0 on, in their order.
_PATTERNS = 0x7C00
# Losses have no sign, except that a zero may have one.
_NO_SIGN = 0x7FFF
_STORED = np.dtype("<i8")


@dataclass(frozen=True)
class LossCounts:
    """The number of targets of every stored loss, (31744,) int64, by the loss's bit pattern."""

    counts: NDArray[np.int64]

    @classmethod
    def of(cls, losses: NDArray[np.float16]) -> "LossCounts":
        """Counts finite losses of at least 0, of any shape."""
        patterns = losses.ravel().view(np.uint16) & _NO_SIGN
        return cls(np.bincount(patterns, minlength=_PATTERNS).astype(np.int64))

    @classmethod
    def none(cls) -> "LossCounts":
        """No targets."""
        return cls(np.zeros(_PATTERNS, dtype=np.int64))

    @classmethod
    def parse(cls, text: str) -> "LossCounts":
        """Reads what `text` gives. Raises ValueError for anything else."""
        size_bytes = _PATTERNS * _STORED.itemsize
        try:
            # One byte more than expected shows that there are more. A hostile file cannot make it unpack gigabytes.
            unpacked = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size_bytes + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"loss counts cannot be unpacked: {error}") from error
        if len(unpacked) != size_bytes:
            raise ValueError(f"loss counts have {len(unpacked)} bytes or more; expected {size_bytes}")
        return cls(np.frombuffer(unpacked, dtype=_STORED).astype(np.int64))

    def text(self) -> str:
        """The counts as int64, little-endian, packed by zlib and written in base64: at most some tens of kB."""
        return base64.b64encode(zlib.compress(self.counts.astype(_STORED).tobytes(), 9)).decode("ascii")

    def __add__(self, other: "LossCounts") -> "LossCounts":
        return LossCounts(self.counts + other.counts)

    @property
    def targets(self) -> int:
        """All targets."""
        return int(self.counts.sum())

    @staticmethod
    def losses() -> NDArray[np.float64]:
        """The loss of each pattern in nats, ascending, (31744,)."""
        return np.arange(_PATTERNS, dtype=np.uint16).view(np.float16).astype(np.float64)

    def loss_at(self, place: int) -> float:
        """The loss in nats of the target at this place from the smallest loss up, counted from 1. There must be so many
        targets."""
        return float(self.losses()[np.searchsorted(np.cumsum(self.counts), place)])

    def quantile(self, share: float) -> float:
        """The loss in nats below which `share` of the targets are: `numpy.quantile` of all of them, to the last bit.

        There must be targets.
        """
        place = share * (self.targets - 1)
        lower = int(place)
        places = [lower, min(lower + 1, self.targets - 1)]
        neighbours = self.losses()[np.searchsorted(np.cumsum(self.counts), places, side="right")]
        return float(np.quantile(neighbours, place - lower))
