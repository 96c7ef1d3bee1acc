"""As in the unit tests of the stream."""

from tests.unit.stream.conftest import temporary

__all__ = ["temporary"]
