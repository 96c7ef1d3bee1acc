"""What the verbs write passes `verify`, and nothing that they leave behind is foreign to it."""

import pytest

from megaslm.inspect.verify import verify
from tests.chain import Chain


@pytest.mark.parametrize("stage", ["tokens", "scored"])
def test_what_was_written_is_whole(chain: Chain, stage: str) -> None:
    found = verify(getattr(chain, stage))
    assert (found.problems, found.warnings) == ((), ())
    assert found.rows == 70
