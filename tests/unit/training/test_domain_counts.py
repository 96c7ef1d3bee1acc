"""Rows of each domain are counted on from where a run was resumed."""

from pathlib import Path

from megaslm.stream.mixture import Mixture, MixtureStream
from megaslm.training.training_data import DomainCounts

MIXTURE = Mixture(
    streams=tuple(
        MixtureStream(Path(name), None, rows, number, None) for number, (name, rows) in enumerate([("a", 10), ("b", 4)])
    ),
    domains=("a", "b"),
)


def test_rows_become_tokens_and_passes() -> None:
    counts = DomainCounts(MIXTURE, seq_len=8, rows_read={})
    counts.add((3, 5))
    counts.add((2, 1))
    assert counts.rows_read == {"a": 5, "b": 6}
    assert counts.tokens == {"a": 40, "b": 48}
    assert counts.passes == {"a": 0.5, "b": 1.5}


def test_a_resumed_run_resumes() -> None:
    undisturbed = DomainCounts(MIXTURE, seq_len=8, rows_read={})
    undisturbed.add((3, 5))
    resumed = DomainCounts(MIXTURE, seq_len=8, rows_read=undisturbed.rows_read)
    for counts in (undisturbed, resumed):
        counts.add((1, 0))
    assert resumed.rows_read == undisturbed.rows_read == {"a": 4, "b": 5}
