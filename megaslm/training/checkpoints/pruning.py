"""The removal of old checkpoints, beside the training."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from megaslm.training.checkpoints.store import Retention, prune


class Pruning:
    """A thread that removes what `retention` does not keep; what it cannot remove is said, and ends no run."""

    def __init__(
        self,
        checkpoints: Path,
        retention: Retention,
        *,
        up_to_step: int,
        damaged: Sequence[int],
        say: Callable[[str], None],
    ) -> None:
        """Begins at once; see `prune`."""

        def run() -> None:
            try:
                prune(checkpoints, retention, up_to_step=up_to_step, damaged=damaged)
            except OSError as error:
                say(f"warning: an old checkpoint cannot be removed: {error}")

        self._thread = threading.Thread(target=run, name="pruning", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when it is through."""
        self._thread.join()
