"""Results that a session's processes share."""

from tests.forks import fork, statuses_of
from tests.shared_results import SharedResults


def test_what_one_process_has_noted_the_others_know() -> None:
    results: SharedResults[str, tuple[int, int]] = SharedResults()

    def note() -> None:
        results["a"] = (1, 2)
        results["b"] = (3, 4)

    def look() -> None:
        assert "a" in results
        assert (results["a"], results["b"]) == ((1, 2), (3, 4))
        assert "c" not in results

    assert statuses_of([fork(note)]) == [0]
    assert statuses_of([fork(look)]) == [0]
    look()
