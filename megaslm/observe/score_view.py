"""What `megaslm inspect` shows of the scoring of a dataset: how losses are distributed, extreme documents, and who."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megaslm.data.dataset.dataset_facts import ShareFacts
from megaslm.data.dataset.score_facts import DocumentFacts, ScoreFacts
from megaslm.data.dataset.score_summary import LOSS_BIN_EDGES, ScoreSummary
from megaslm.observe.units import duration, operations
from megaslm.observe.visible import visible_on_one_line

_BAR_LINES = 3
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_BINS_BETWEEN_MARKS = 8
_EXCERPT_WIDTH = 80
_DOCUMENTS_OF_MANY = 3
"""Documents shown at either end where several domains are shown; all where it is one."""


def show_scores(console: Console, shares: Sequence[ShareFacts], scores: ScoreSummary) -> None:
    """Prints it for the given domains."""
    of_shares = [(f"{share.split}/{share.domain}", share.scores) for share in shares if share.scores is not None]
    console.print(_histograms(of_shares))
    console.print(_documents(of_shares))
    console.print(_devices(scores))


def _histograms(of_shares: Sequence[tuple[str, ScoreFacts]]) -> Table:
    table = _statistics_table("ref_loss of targets, in nats")
    table.add_column("", style="bold", overflow="fold")
    table.add_column(_axis(), no_wrap=True)
    table.add_column("peak", justify="right")
    for place, scores in of_shares:
        highest = max(scores.histogram) / sum(scores.histogram)
        table.add_row(Text(place), "\n".join(_bars(scores.histogram)), f"{highest:.1%}")
    return table


def _axis() -> str:
    """Marks at edges of bins, each where the bin above it begins."""
    marks = "".join(f"|{edge:<{_BINS_BETWEEN_MARKS - 1}.2g}" for edge in LOSS_BIN_EDGES[::_BINS_BETWEEN_MARKS])
    return f"0{marks}".rstrip()


def _bars(histogram: Sequence[int]) -> Iterator[str]:
    """Lines from the top: a bin is a column, as high as its count by the largest."""
    heights = [round(count / max(histogram) * _BAR_LINES * 8) for count in histogram]
    # What there is shows, however little.
    heights = [max(height, min(1, count)) for height, count in zip(heights, histogram, strict=True)]
    for line in reversed(range(_BAR_LINES)):
        yield "".join(_EIGHTHS[min(8, max(0, height - 8 * line))] for height in heights)


def _documents(of_shares: Sequence[tuple[str, ScoreFacts]]) -> Table:
    table = _statistics_table("hardest and easiest documents")
    table.add_column("", style="bold", overflow="fold")
    for name in ("mean\nref_loss", "targets", "row", "token"):
        table.add_column(name, justify="right", no_wrap=True)
    # Rich makes columns that may wrap narrower first; these texts do not wrap, but are cut.
    table.add_column("begins", max_width=_EXCERPT_WIDTH)
    shown = _DOCUMENTS_OF_MANY if len(of_shares) > 1 else None
    for place, scores in of_shares:
        for end, documents in (("hardest", scores.worst[:shown]), ("easiest", scores.best[:shown])):
            for number, document in enumerate(documents):
                table.add_row(Text("" if number else f"{place} {end}"), *_document(document))
    table.caption = "documents of 32 targets or more; `--row` with `--split` and `--domain` shows a row"
    return table


def _document(document: DocumentFacts) -> tuple[str, str, str, str, Text]:
    return (
        f"{document.mean_loss:.3f}",
        f"{document.targets:,}",
        f"{document.row:,}",
        f"{document.token:,}",
        Text(visible_on_one_line(document.excerpt), no_wrap=True, overflow="ellipsis"),
    )


def _devices(scores: ScoreSummary) -> Table:
    table = _statistics_table("scored by")
    table.add_column("", style="bold", overflow="fold")
    for name in ("hosts", "ranks", "parts", "targets", "time of\nall ranks", "tokens/s\na rank", "MFU"):
        table.add_column(name, justify="right")
    for device in scores.devices:
        table.add_row(
            Text(device.device),
            f"{device.hosts:,}",
            f"{device.ranks:,}",
            f"{device.parts:,}",
            f"{device.targets:,}",
            duration(device.rank_seconds),
            f"{device.tokens_per_second_per_rank:,.0f}",
            "unknown" if device.mfu is None else f"{device.mfu:.1%}",
        )
    table.caption = f"{operations(scores.forward_flops_per_token)} a token"
    if scores.gpu_hours:
        table.caption += f" · {scores.gpu_hours:,.2f} GPU-hours"
    return table


def _statistics_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="bold",
    )
