"""What tests share that need the machine alone."""

from tests.system.conftest import one_thread

__all__ = ["one_thread"]
