"""Whether a dataset is what a job needs, as far as its manifest tells."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megaslm.config.expression import OF_MODEL
from megaslm.config.measuring import ValidationSet
from megaslm.config.schema import Objective, RunConfig
from megaslm.config.selection import SlmSection
from megaslm.dataset.manifest import AttachedName, Manifest, Mask, Reference
from megaslm.errors import DataError


class ReadDataset(NamedTuple):
    """A dataset that a run reads, as its manifest describes it."""

    setting: str
    """The setting that names it: data.train or data.streams.NAME."""
    manifest: Manifest
    domains: tuple[str, ...]
    """The domains that are read, each with training rows."""

    @property
    def rows(self) -> int:
        """Training rows of these domains."""
        return sum(self.manifest.splits["train"][domain].rows for domain in self.domains)


def training_domains(
    manifest: Manifest, place: str, chosen: Sequence[str] | None, *, setting: str, seq_len: int
) -> tuple[str, ...]:
    """The domains of the dataset at `place` that a run reads: those `chosen` by `setting`, or all.

    Raises DataError where its rows are not of `seq_len` targets, or it has no training rows of a domain.
    """
    if manifest.seq_len != seq_len:
        raise DataError(
            f"{place} has rows of {manifest.seq_len} targets; data.seq_len = {seq_len}; set "
            "data.seq_len to the dataset's, or prepare the dataset again"
        )
    present = manifest.splits.get("train", {})
    domains = tuple(chosen or present)
    missing = [domain for domain in domains if domain not in present]
    if not domains:
        raise DataError(f"{place} has no training rows; prepare it again with more text")
    if missing:
        raise DataError(
            f"{place} has no training rows of {', '.join(missing)}; it has {', '.join(present) or 'none'}; change "
            f"{setting}"
        )
    return domains


def require_targets_of(objective: Objective, manifest: Manifest, place: str) -> None:
    """Raises DataError where a target mask and the objective do not go together: the dataset at `place` has none for
    sft, or has one that clm would pass over."""
    if objective == "sft" and not manifest.target_mask:
        raise DataError(
            f"{place} has no target_mask, so that train.objective sft would train on prompts too; prepare it from "
            "conversations (messages_field with chat_format in the recipe), or set train.objective clm"
        )
    if objective == "clm" and manifest.target_mask:
        raise DataError(
            f"{place} has a target_mask, which excludes prompts and outputs of tools; train.objective clm trains on "
            "every target: set train.objective sft, or prepare the text without chat_format"
        )


def require_weights(config: RunConfig, manifest: Manifest, place: str) -> None:
    """Raises DataError where the dataset at `place` lacks what the run's weights of targets are computed from."""
    weight, criterion = config.slm.weight, config.slm.criterion
    if config.train.objective != "slm":
        return
    if weight.by == "column" and "weight" not in manifest.columns:
        raise DataError(
            f"{place} has no column weight, which slm.weight.by column needs; add it with `megaslm attach`, or use "
            "another slm.weight.by"
        )
    if weight.by == "sigmoid" and criterion in ("excess", "reference", "entropy") and manifest.kind != "scored":
        raise DataError(
            f"{place} holds no ref_loss (kind {manifest.kind!r}), from which slm.weight.by sigmoid computes the "
            f"{criterion} of each target; name a dataset that `megaslm score` has written"
        )


def require_columns(config: RunConfig, manifest: Manifest, place: str) -> None:
    """Raises DataError where the dataset at `place` lacks a column that the expression of `slm.criterion` names."""
    expression = config.slm.expression
    if config.train.objective != "slm" or expression is None:
        return
    present = manifest.number_columns
    missing = sorted(expression.columns - set(present))
    if missing:
        raise DataError(
            f"{place} has no column {', '.join(missing)}, which slm.criterion {config.slm.criterion} names; an "
            f"expression may name {', '.join((*OF_MODEL, *present))} here: correct it, or add the column"
        )


def heldout_domains(name: str, chosen: ValidationSet, manifest: Manifest, training: Manifest) -> Iterator[str]:
    """The domains of the validation set `name` that a run reads.

    Raises DataError where its dataset lacks one or has no rows of the split, or has another tokenizer, BOS or row
    length than the training data.
    """
    found, expected = (
        f"tokenizer {one.ids_fingerprint(other)[:12]}, EOS {one.eos_id}, bos {one.bos_in_words}, rows of {one.seq_len}"
        for one, other in ((manifest, training), (training, manifest))
    )
    if found != expected:
        raise DataError(f"validation.sets.{name}: {chosen.dataset} has {found}; the training data has {expected}")
    present = manifest.splits.get(chosen.split, {})
    if not present:
        raise DataError(
            f"validation.sets.{name}: {chosen.dataset} has no rows in its split {chosen.split!r}, so that nothing "
            "would be measured; remove the set, or prepare a dataset with a larger heldout_fraction or more documents"
        )
    for domain in chosen.domains if chosen.domains is not None else present:
        if domain not in present:
            raise DataError(
                f"validation.sets.{name}: {chosen.dataset} has no domain {domain!r} in its split {chosen.split!r}; "
                f"it has {', '.join(present) or 'none'}"
            )
        yield domain


def reads_scores(config: RunConfig) -> bool:
    """Whether the run selects by what a scoring job has stored."""
    expression = config.slm.expression
    names_losses = expression is not None and bool(expression.columns - {"weight"})
    return reads_reference(config) or (config.train.objective == "slm" and names_losses)


def losses_read(config: RunConfig, manifest: Manifest) -> Iterator[tuple[str, Reference]]:
    """The columns of further losses that the expression of `slm.criterion` names, and their references."""
    if config.train.objective == "slm" and config.slm.expression is not None:
        yield from (item for item in manifest.losses.items() if item[0] in config.slm.expression.columns)


def reads_reference(config: RunConfig) -> bool:
    """Whether the run selects by a reference model's losses or entropies, or is drawn to its predictions."""
    return config.train.objective == "slm" and (
        config.slm.needs_ref_loss or config.slm.needs_ref_entropy or distills(config)
    )


def distills(config: RunConfig) -> bool:
    """Whether the run reads the reference's most likely tokens."""
    return config.train.objective == "slm" and config.slm.distills


def require_distillable(config: RunConfig, manifest: Manifest, place: str) -> None:
    """Raises DataError where the run needs the reference's most likely tokens and the dataset at `place` has none."""
    reference = manifest.reference if manifest.kind == "scored" else None
    if distills(config) and (reference is None or not reference.top_logits):
        raise DataError(
            f"{place} holds no ref_top_logprob, which slm.distill needs; run `megaslm score --top-logits 16` into "
            "another folder, or set slm.distill.weight 0"
        )


def require_named_domains(config: RunConfig, domains: Sequence[str]) -> None:
    """Raises DataError where a domain of `slm.keep_ratio_of_domains` is none of those that the run reads."""
    unknown = [name for name in config.slm.keep_ratio_of_domains if name not in domains]
    if unknown and config.train.objective == "slm":
        raise DataError(
            f"slm.keep_ratio_of_domains names {', '.join(unknown)}; the run reads {', '.join(domains)}: correct the "
            "names"
        )


def selects_by_column(config: RunConfig) -> bool:
    """Whether the run trains on what the datasets' own masks select."""
    return config.train.objective == "slm" and config.slm.criterion == "selected"


def require_reference(manifest: Manifest, place: str, *, needs_entropy: bool) -> Reference:
    """The reference whose losses the dataset at `place` holds. Raises DataError where it is not scored, or lacks the
    entropies that the run needs."""
    found = manifest.reference
    if manifest.kind != "scored" or found is None:
        remedy = (
            "set slm.criterion selected, which trains on its mask"
            if manifest.kind == "masked"
            else "run `megaslm score` on it for train.objective slm"
        )
        raise DataError(f"{place} holds no ref_loss (kind {manifest.kind!r}); {remedy}")
    if needs_entropy and not found.entropy:
        raise DataError(
            f"{place} holds no ref_entropy, which slm.criterion needs; run `megaslm score --entropy` into "
            "another folder"
        )
    return found


def require_losses_to_mask(manifest: Manifest, place: str, criterion: str) -> None:
    """Raises DataError where the dataset at `place` lacks the column that a mask by `criterion` sorts by."""
    if manifest.kind != "scored" or manifest.reference is None:
        raise DataError(
            f"{place} holds no ref_loss (kind {manifest.kind!r}), of which a mask is made; name a dataset that "
            "`megaslm score` has written"
        )
    if criterion != "reference" and not manifest.reference.entropy:
        raise DataError(
            f"{place} holds no ref_entropy, which --criterion {criterion} needs; run "
            "`megaslm score --entropy` into another folder"
        )


def require_rule(mask: Mask, place: str, run: SlmSection) -> None:
    """Raises DataError where the mask of the dataset at `place` was made by another rule than the run selects by."""
    settings = {
        "criterion": (mask.criterion, run.criterion),
        "keep_ratio_of_domains": ("{}", "{…}" if run.keep_ratio_of_domains else "{}"),
        "scope": (mask.scope, run.scope),
        "policy": ("top", run.policy),
        "keep_ratio": (mask.keep_ratio, run.keep_ratio),
        "keep_ratio_warmup_tokens": (0, run.keep_ratio_warmup_tokens),
        "keep_ratio_schedule": ("[]", "[]" if not run.keep_ratio_schedule else "[…]"),
        "granularity": ("token", run.granularity),
        "max_ref_loss": (mask.max_ref_loss, run.max_ref_loss),
    }
    different = {name: values for name, values in settings.items() if values[0] != values[1]}
    if different:
        of_mask, of_run = (
            ", ".join(f"slm.{name} = {values[side]}" for name, values in different.items()) for side in (0, 1)
        )
        raise DataError(
            f"{place} is masked for {of_mask}; the run has {of_run}: change the run, make another mask with "
            "`megaslm mask`, or train on the scored dataset"
        )


def require_scorable(manifest: Manifest, place: str, column: str) -> None:
    """Raises DataError where losses cannot be stored as `column` beside the tokens of the dataset at `place`."""
    if column == "ref_loss" and manifest.kind != "tokens":
        raise DataError(
            f"{place} is of kind {manifest.kind!r}; name the dataset of tokens that it was made from, or add --as NAME "
            "for a further column of losses"
        )
    if column in manifest.losses:
        found = manifest.losses[column]
        raise DataError(
            f"{place} has {column} already, the losses of {found.name} (weights {found.weights_sha256[:12]}); choose "
            "another name for --as"
        )


def require_attachable(manifest: Manifest, place: str, name: AttachedName) -> None:
    """Raises DataError where the dataset at `place` has the column `name` already, or has other columns that were made
    without it."""
    attached = manifest.columns.get(name)
    if attached is not None:
        raise DataError(
            f"{place} has {name} already, attached from {attached.file} (SHA-256 {attached.sha256[:12]}); attach to "
            "the dataset without it"
        )
    if name == "target_mask" and manifest.target_mask:
        raise DataError(
            f"{place} has a target_mask already, of its conversations; attach selected or weight, or prepare the text "
            "without chat_format"
        )
    if name != "weight" and (manifest.kind != "tokens" or manifest.losses):
        found = f"is of kind {manifest.kind!r}" if manifest.kind != "tokens" else f"has {', '.join(manifest.losses)}"
        raise DataError(
            f"{place} {found}; {name} is attached to the dataset of tokens that it was made from: name that one"
        )


def require_selected(manifest: Manifest, place: str) -> None:
    """Raises DataError where the dataset at `place` lacks `selected`, which slm.criterion selected trains on."""
    if manifest.kind != "masked":
        raise DataError(
            f"{place} holds no mask (kind {manifest.kind!r}), which slm.criterion selected needs; run `megaslm attach "
            "--as selected`, or set another criterion"
        )
