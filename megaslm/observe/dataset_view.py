"""What `megaslm inspect` shows of a dataset: what it is, and a table of its splits and domains."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from megaslm.data.dataset.dataset_facts import DatasetFacts, ShareFacts
from megaslm.data.dataset.manifest import SCORES, Manifest
from megaslm.observe.score_view import show_scores
from megaslm.observe.units import size

_HASH_DIGITS = 12


def show_dataset(console: Console, facts: DatasetFacts) -> None:
    """Prints it all."""
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
        f"{packing.after_document} after each document · {packing.overlap_tokens} token shared by neighbours · "
        f"padded with {packing.padding} · special tokens {packing.special_tokens_in_text}",
    )
    if manifest.reference is not None:
        reference = manifest.reference
        isolated = "documents read one by one" if reference.document_isolation else "documents read together"
        yield (
            "reference",
            f"{reference.name} · weights {reference.weights_sha256[:_HASH_DIGITS]} · {reference.precision} · "
            f"{isolated} · window {reference.window:,}, stride {reference.stride:,}"
            + (" · with entropies" if reference.entropy else ""),
        )
    if manifest.mask is not None:
        mask = manifest.mask
        cap = "" if mask.max_ref_loss is None else f" · none above {mask.max_ref_loss:g} nats"
        yield "mask", f"slm.score {mask.score} · keep_ratio {mask.keep_ratio} · scope {mask.scope}{cap}"
    licences = dict.fromkeys(manifest.licences.values())
    yield (
        "licences",
        "; ".join(
            f"{licence} ({', '.join(domain for domain, its in manifest.licences.items() if its == licence)})"
            for licence in licences
        ),
    )
    yield "sources", f"{len(manifest.sources):,} · tokens {manifest.tokens_fingerprint()[:_HASH_DIGITS]}"
    yield "written by", f"MegaSLM {manifest.megaslm_version} · manifest version {manifest.schema_version}"


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
        *(("selected",) if facts.manifest.mask is not None else ()),
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
            *(() if share.selected_share is None else (f"{share.selected_share:.2%}",)),
        )
    return table


def _losses(facts: DatasetFacts) -> Table:
    table = _table("rows read", "targets read", "mean ref_loss", "median", "95% below", "perplexity")
    table.caption = "ref_loss in nats; " + (
        "rows are read evenly spread over each domain, or all of them"
        if facts.scores is None
        else f"exact means; median and 95% to about 1% ({SCORES})"
    )
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


def _table(*numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    table.add_column("split")
    table.add_column("domain", overflow="fold", style="bold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _places(facts: DatasetFacts) -> Iterator[tuple[tuple[str, Text], ShareFacts]]:
    """Each share with what its line begins with; a split is named once."""
    last_split = None
    for share in facts.shares:
        yield ("" if share.split == last_split else share.split, Text(share.domain)), share
        last_split = share.split
