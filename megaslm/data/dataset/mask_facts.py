"""How much of a masked dataset is selected."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from megaslm.data.dataset.row_reader import RowReader
from megaslm.slm.valid_targets import valid_targets


def selected_share(reader: RowReader, rows: Sequence[int], eos_id: int) -> float:
    """Of the targets of the given rows, the part that is selected."""
    selected = targets = 0
    for number in rows:
        row = reader[number]
        selected += int(np.bitwise_count(cast(NDArray[np.uint8], row["selected"])).sum())
        targets += int(valid_targets(row["tokens"], eos_id).sum())
    return selected / max(1, targets)
