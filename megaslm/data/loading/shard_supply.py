"""A thread that makes shards ready, in the order in which they are asked for."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Condition, Thread
from types import TracebackType


class ShardSupply:
    """The thread, as a context: what is not begun when the context ends is left undone.

    Readers wait for shards with a time limit of their own, which a download may not keep.
    """

    def __init__(self, make_ready: Callable[[int], None]) -> None:
        """`make_ready` is called with the number of one shard after the other."""
        self._make_ready = make_ready
        self._asked: OrderedDict[int, None] = OrderedDict()
        self._changed = Condition()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._work, name="shard supply", daemon=True)

    def __enter__(self) -> "ShardSupply":
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Lets the thread end; waits for it unless there was an exception, after which the run ends anyway.

        A process that goes leaves nothing half done where others may need it.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if kind is None:
            self._thread.join()

    def ask(self, shard: int, *, first: bool = False) -> None:
        """Has a shard made ready after those that were asked for before, or `first` of them all."""
        with self._changed:
            self._asked.setdefault(shard)
            if first:
                self._asked.move_to_end(shard, last=False)
            self._changed.notify()

    def raise_failure(self) -> None:
        """Raises what `make_ready` raised, if it did: the thread has ended then."""
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                self._make_ready(shard)
            # Raised again by raise_failure, in the thread that can tell somebody.
            except BaseException as error:
                self._failure = error
                return

    def _next(self) -> int | None:
        with self._changed:
            while not self._asked and not self._closed:
                self._changed.wait()
            return None if self._closed else self._asked.popitem(last=False)[0]
