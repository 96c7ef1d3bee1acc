"""The output of `megaslm inspect`: a table of a dataset's splits and domains, and the distribution of its losses."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from megaslm.dataset.manifest import SCORES, Manifest, Reference
from megaslm.dataset.score_summary import LOSS_BIN_EDGES, LOSS_BIN_WIDTH, ScoreSummary
from megaslm.inspect.dataset_facts import SAMPLED_ROWS, DatasetFacts, DocumentFacts, ScoreFacts, ShareFacts
from megaslm.observe.display import counted, duration, operations, percent, rounded, size, visible_on_one_line

_BAR_LINES = 3
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_BINS_BETWEEN_MARKS = 8
_EXCERPT_WIDTH = 80
_DOCUMENTS_OF_MANY = 3
"""Documents shown at either end if several domains are shown. A single domain shows all."""
_HASH_DIGITS = 12
_BOS = {"none": "no BOS", "document": "BOS before each document", "row": "BOS at the start of each row"}


def show_scores(console: Console, shares: Sequence[ShareFacts], scores: ScoreSummary) -> None:
    """Prints the distribution of losses for the given domains."""
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
    """Marks at edges of bins, each at the start of the bin above it."""
    marks = "".join(f"|{edge:<{_BINS_BETWEEN_MARKS - 1}.2g}" for edge in LOSS_BIN_EDGES[::_BINS_BETWEEN_MARKS])
    return f"0{marks}".rstrip()


def _bars(histogram: Sequence[int]) -> Iterator[str]:
    """Lines from the top. A bin is a column, its height is its count divided by the largest count."""
    heights = [round(count / max(histogram) * _BAR_LINES * 8) for count in histogram]
    # A bin that is not empty is visible, however small its count.
    heights = [max(height, min(1, count)) for height, count in zip(heights, histogram, strict=True)]
    for line in reversed(range(_BAR_LINES)):
        yield "".join(_EIGHTHS[min(8, max(0, height - 8 * line))] for height in heights)


def _documents(of_shares: Sequence[tuple[str, ScoreFacts]]) -> Table:
    table = _statistics_table("hardest and easiest documents")
    table.add_column("", style="bold", overflow="fold")
    for name in ("mean\nref_loss", "targets", "row", "token"):
        table.add_column(name, justify="right", no_wrap=True)
    # Rich first narrows columns that may wrap. These texts do not wrap: they are cut.
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
            rounded(device.tokens_per_second_per_rank),
            "unknown" if device.mfu is None else percent(device.mfu, 1),
        )
    table.caption = f"{operations(scores.forward_flops_per_token)} per token"
    if scores.gpu_hours:
        table.caption += f" · {rounded(scores.gpu_hours, 2)} GPU-hours"
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


def show_dataset(console: Console, facts: DatasetFacts) -> None:
    """Prints all facts of a dataset."""
    manifest = facts.manifest
    title = Text.assemble((manifest.name, "not dim bold"), f" · {manifest.kind} · {facts.dataset}")
    console.print(Panel(_description(manifest), title=title, title_align="left", border_style="dim"))
    console.print(_shares(facts))
    if any(share.ref_loss is not None for share in facts.shares):
        console.print(_losses(facts))
    if facts.scores is not None:
        show_scores(console, facts.shares, facts.scores)


def _description(manifest: Manifest) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan")
    grid.add_column(overflow="fold")
    for name, value in _lines(manifest):
        grid.add_row(name, Text(value))
    return grid


def _lines(manifest: Manifest) -> Iterator[tuple[str, str]]:
    packing = manifest.packing
    yield "rows", f"{manifest.seq_len:,} targets each"
    yield (
        "tokenizer",
        f"{manifest.tokenizer_sha256[:_HASH_DIGITS]} · {manifest.vocab_size:,} ids · EOS is {manifest.eos_id} · "
        f"BOS is {'none' if manifest.bos_id is None else manifest.bos_id}",
    )
    yield (
        "packing",
        f"{_BOS[packing.bos]} · {packing.after_document} after each document · "
        f"{packing.overlap_tokens or 'no'} token shared by neighbours · padded with {packing.padding} · "
        f"special tokens {packing.special_tokens_in_text}",
    )
    if manifest.target_mask and "target_mask" not in manifest.columns:
        yield "target mask", "prompts and outputs of tools are context, and no targets"
    if manifest.reference is not None:
        yield "reference", _reference(manifest.reference)
    for name, reference in manifest.losses.items():
        yield name, f"losses of {_reference(reference)}"
    if manifest.mask is not None:
        mask = manifest.mask
        cap = "" if mask.max_ref_loss is None else f" · none above {mask.max_ref_loss:g} nats"
        yield "mask", f"slm.criterion {mask.criterion} · keep_ratio {mask.keep_ratio} · scope {mask.scope}{cap}"
    for name, column in manifest.columns.items():
        yield (
            name,
            f"attached from {column.file} · SHA-256 {column.sha256[:_HASH_DIGITS]} · {counted(column.lines, 'line')} "
            f"by {column.addressed_by} for {counted(column.targets, 'target')} · {_value(column.default)} elsewhere",
        )
    licences = dict.fromkeys(manifest.licences.values())
    yield (
        "licences",
        "; ".join(
            f"{licence} ({', '.join(domain for domain, its in manifest.licences.items() if its == licence)})"
            for licence in licences
        ),
    )
    if manifest.hub:
        yield "hub", "; ".join(f"{hub.repo} at {hub.revision}" for hub in manifest.hub)
    files, pieces = len({source.path for source in manifest.sources}), len(manifest.sources)
    cut = "" if pieces == files else f" in {pieces:,} pieces"
    yield "sources", f"{counted(files, 'file')}{cut} · tokens {manifest.tokens_fingerprint()[:_HASH_DIGITS]}"
    yield "written by", f"MegaSLM {manifest.megaslm_version} · manifest version {manifest.schema_version}"


def _reference(reference: Reference) -> str:
    isolated = "documents read one by one" if reference.document_isolation else "documents read together"
    return (
        f"{reference.name} · weights {reference.weights_sha256[:_HASH_DIGITS]} · {reference.precision} · "
        f"{isolated} · window {reference.window:,}, stride {reference.stride:,}"
        + (" · by its own tokenizer, carried over" if reference.aligned else "")
        + (" · with entropies" if reference.entropy else "")
        + (f" · with its {reference.top_logits} most likely tokens" if reference.top_logits else "")
        + (f" · attention by {reference.attention}" if reference.attention else "")
        + (f" · from step {reference.run.step:,} of {reference.run.run}" if reference.run else "")
    )


def _value(default: bool | float) -> str:
    return str(default).lower() if isinstance(default, bool) else f"{default:g}"


def _shares(facts: DatasetFacts) -> Table:
    table = _table(
        "rows",
        "targets",
        "documents",
        "targets\nper document",
        "parts",
        "size",
        "bytes\nper target",
        "padding",
        *(("trained",) if facts.manifest.target_mask else ()),
        *(("selected",) if facts.manifest.kind == "masked" else ()),
        *(("mean\nweight",) if "weight" in facts.manifest.columns else ()),
    )
    for place, share in _places(facts):
        table.add_row(
            *place,
            f"{share.rows:,}",
            f"{share.targets:,}",
            f"{share.documents:,}",
            f"{share.targets_per_document:,.1f}",
            f"{share.parts:,}",
            size(share.bytes),
            f"{share.bytes_per_target:.2f}",
            f"{share.padding_share:.2%}",
            *(() if share.trained_share is None else (f"{share.trained_share:.2%}",)),
            *(() if share.selected_share is None else (f"{share.selected_share:.2%}",)),
            *(() if share.mean_weight is None else (f"{share.mean_weight:.4g}",)),
        )
    return table


def _losses(facts: DatasetFacts) -> Table:
    table = _table("rows read", "targets read", "mean ref_loss", "median", "95% below", "perplexity")
    table.caption = f"ref_loss in nats; {_precision(facts)}"
    table.caption_justify = "left"
    for place, share in _places(facts):
        if share.ref_loss is not None:
            losses = share.ref_loss
            table.add_row(
                *place,
                f"{losses.rows:,}",
                f"{losses.targets:,}",
                f"{losses.mean:.3f}",
                f"{losses.median:.3f}",
                f"{losses.p95:.3f}",
                f"{losses.perplexity:,.2f}",
            )
    return table


def _precision(facts: DatasetFacts) -> str:
    """How exact the numbers of the losses are."""
    if facts.scores is None:
        return f"of up to {SAMPLED_ROWS} rows, evenly spread over each domain"
    if all(share.ref_loss is None or share.ref_loss.quantiles_are_exact for share in facts.shares):
        return f"exact, over all targets ({SCORES})"
    return (
        f"exact means; median and 95% lie within a bin of the histogram, {LOSS_BIN_WIDTH:.0%} wide, because an earlier "
        f"build wrote {SCORES}"
    )


def _table(*numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    table.add_column("split")
    table.add_column("domain", overflow="fold", style="bold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _places(facts: DatasetFacts) -> Iterator[tuple[tuple[str, Text], ShareFacts]]:
    """Each share with the first cells of its line. A split is named once."""
    last_split = None
    for share in facts.shares:
        yield ("" if share.split == last_split else share.split, Text(share.domain)), share
        last_split = share.split
