"""Writes recipes and runs for a model and text of one's own, with a comment behind every choice."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.config.source import to_yaml
from megaslm.files import new_folder, require_absent
from megaslm.model.folder import check_model_folder
from megaslm.model.weight_files import count_parameters, is_untrained
from megaslm.observe.display import counted, size, visible_on_one_line
from megaslm.scaffold.comments import aligned
from megaslm.scaffold.sizes import (
    LARGEST_BATCH_TOKENS,
    SMALL,
    heldout_fraction,
    learning_rates,
    model_sizes,
    row_length,
    run_sizes,
)
from megaslm.scaffold.text_look import TextLook, files_in_both, look_at_text
from megaslm.tokenizer.bos import puts_bos
from megaslm.tokenizer.tokenizer import tokenizer_facts

_RECIPES = ("corpus.yaml", "curated.yaml")
_RUNS = ("reference.yaml", "clm.yaml", "slm.yaml")
_REFERENCE_EPOCHS = 3
_LEAST_PART_BYTES, _MOST_PART_BYTES = 1_000_000, 64_000_000
_PARTS_WANTED = 16


@dataclass(frozen=True)
class Project:
    """What was found, and what was written."""

    folder: Path
    family: str
    parameters: int
    untrained: bool
    """Whether the weights are new."""
    positions: int
    bos: str
    """`bos` of the recipes."""
    seq_len: int
    corpus: TextLook
    curated: TextLook
    in_both: tuple[str, ...]
    """Files of the curated text that are also in the corpus."""
    files: tuple[Path, ...]
    commands: tuple[str, ...]
    """The commands from the text to a model, in order."""


def init(model: Path, corpus: Sequence[str], curated: Sequence[str], folder: Path) -> Project:
    """Writes two recipes and three runs into `folder`.

    Args:
        model: the Hugging Face folder of the model to start from, with its tokenizer.
        corpus: files, folders or globs with the large text.
        curated: likewise, with text like that which the model is to be good at.
        folder: the folder to make.

    Raises:
        ConfigError: `folder` exists or cannot be made, or no field of the records holds text.
        ModelError, DataError: the model or the text cannot be read.
    """
    require_absent(folder)
    config = check_model_folder(model)
    parameters, positions = count_parameters(model), int(config.max_position_embeddings)
    facts = tokenizer_facts(model)
    looks = {name: look_at_text(paths, model) for name, paths in (("corpus", corpus), ("curated", curated))}
    seq_len = row_length(parameters, positions, min(look.trained_tokens for look in looks.values()))
    project = Project(
        folder=folder,
        family=str(config.model_type),
        parameters=parameters,
        untrained=is_untrained(model),
        positions=positions,
        bos="document" if puts_bos(model, facts.eos_id) else "none",
        seq_len=seq_len,
        corpus=looks["corpus"],
        curated=looks["curated"],
        in_both=files_in_both(looks["corpus"], looks["curated"]),
        files=tuple(folder / name for name in (*_RECIPES, *_RUNS)),
        commands=_commands(folder),
    )
    texts = {
        "corpus.yaml": _recipe(project, model, "corpus", project.corpus),
        "curated.yaml": _recipe(project, model, "curated", project.curated),
        "reference.yaml": _reference(project, model),
        "clm.yaml": _clm(project),
        "slm.yaml": _slm(project),
    }
    with new_folder(folder) as temporary:
        for name, text in texts.items():
            (temporary / name).write_text(aligned(text), encoding="utf-8")
        for name in _RECIPES:
            load(Recipe, temporary / name)
        for name in _RUNS:
            load(RunConfig, temporary / name)
    return project


def _commands(folder: Path) -> tuple[str, ...]:
    data, runs, models = "{0}/datasets", "{0}/runs", "{0}/models"
    commands = (
        f"megaslm prepare {{0}}/corpus.yaml {data}/corpus",
        f"megaslm prepare {{0}}/curated.yaml {data}/curated",
        f"megaslm inspect {data}/corpus --row 0",
        "megaslm doctor {0}/reference.yaml",
        "{1} train {0}/reference.yaml --smoke",
        "{1} train {0}/reference.yaml",
        f"megaslm export {runs}/reference {models}/reference",
        f"{{1}} score --reference {models}/reference {data}/corpus {data}/corpus-scored",
        f"megaslm inspect {data}/corpus-scored",
        f"megaslm inspect {data}/corpus-scored --row 0",
        "{1} train {0}/clm.yaml",
        "{1} train {0}/slm.yaml",
        f"megaslm inspect {runs}/clm",
        f"megaslm inspect {runs}/slm",
        f"megaslm report {runs}/clm {runs}/slm -o {runs}/report.html",
        f"tensorboard --logdir {runs}",
        f"megaslm export {runs}/slm {models}/slm",
    )
    return tuple(command.format(shlex.quote(str(folder)), _on_all_ranks()) for command in commands)


def _on_all_ranks() -> str:
    """What starts a verb once per GPU: the clone's launcher. A wheel has none; a verb is then started once."""
    launcher = Path("launcher/local.sh")
    found = next((path for path in (launcher, Path(__file__).parents[2] / launcher) if path.is_file()), None)
    return "megaslm" if found is None else shlex.quote(str(found))


def _recipe(project: Project, model: Path, name: str, look: TextLook) -> str:
    taken = "".join(f"\n    {key}: {_quoted(value)}" for key, value in look.taken_from.items())
    seen = f"    # fields of the first records: {visible_on_one_line(', '.join(look.fields))}\n" if look.fields else ""
    part_bytes = min(_MOST_PART_BYTES, max(_LEAST_PART_BYTES, look.input_bytes // _PARTS_WANTED))
    title = "corpus" if name == "corpus" else "curated text"
    note = "the large text" if name == "corpus" else "text like that which the model is to be good at"
    return f"""\
# The {title}: {note}. {counted(look.files, "file")}, {size(look.input_bytes)}.
# About {counted(look.documents, "document")} and {counted(look.tokens, "token")}. data/README.md explains every key.
name: {_quoted(f"{project.folder.name}-{name}")}
licence: unknown\t# name it: it is kept with the dataset
seq_len: {project.seq_len}\t# targets per row, of the {project.positions:,} positions of the model
bos: {project.bos}\t# {_BOS[project.bos]}
tokenizer: {{huggingface: {_quoted(str(model))}}}
sources:
  - domain: {name}
    reader: {look.reader}
    paths: [{", ".join(_quoted(path) for path in look.paths)}]{taken}
{seen}heldout_fraction: {heldout_fraction(look.documents)}\t# of the documents, for validation
part_bytes: {part_bytes}\t# size of a task: several tasks per process share the work
"""


_BOS = {
    "document": "before each document, as the tokenizer puts it before a prompt",
    "none": "the tokenizer puts none before a prompt",
}


def _reference(project: Project, model: Path) -> str:
    sizes, folder = model_sizes(project.parameters, project.seq_len), project.folder
    rates = learning_rates(project.parameters, untrained=project.untrained)
    run = run_sizes(_REFERENCE_EPOCHS * project.curated.trained_tokens, project.seq_len)
    # The other runs take it from this file.
    batch_tokens = max(run.batch_tokens, run_sizes(project.corpus.trained_tokens, project.seq_len).batch_tokens)
    micro_batch_rows = min(sizes.micro_batch_rows, batch_tokens // project.seq_len)
    return f"""\
# The reference: the model, trained on the curated text alone. The other runs are based on this file.
# `megaslm config explain {visible_on_one_line(shlex.quote(f"{folder}/reference.yaml"))}` prints every setting.
run_dir: {_quoted(f"{folder}/runs/reference")}
model:
  from_pretrained: {_quoted(str(model))}\t# {project.family}, {project.parameters:,} parameters
  recompute: {sizes.recompute}\t# none, selective or full: less memory for up to a third more compute
data:
  train: {_quoted(f"{folder}/datasets/curated")}
  seq_len: {project.seq_len}
train:
  objective: clm
  epochs: {_REFERENCE_EPOCHS}\t# as in the paper
  global_batch_tokens: {run.batch_tokens}\t# {_batch_note(run.batch_tokens, project.seq_len)}
  micro_batch_rows: {micro_batch_rows}\t# rows that a rank computes at once; docs/tutorial.md: when to lower it
  lr: {rates.reference_lr}\t# {_lr_note(project)}
  warmup_tokens: {run.warmup_tokens}\t# 1%
zero:
  stage: {sizes.zero_stage}\t# 2 divides gradients and optimiser states over GPUs; 3 the weights too
  reduce_bucket_size: {sizes.bucket_elements}\t# elements per message between GPUs, and the next
  prefetch_bucket_size: {sizes.bucket_elements}
validation:{_heldout(project, "curated", project.curated)}
  every_tokens: {run.validation_tokens}\t# 20 times
checkpoint: {{every_tokens: {run.checkpoint_tokens}}}\t# 5 times; the newest two are kept
"""


def _clm(project: Project) -> str:
    rates, folder = learning_rates(project.parameters, untrained=project.untrained), project.folder
    note = "the reference's, for new weights" if project.untrained else "higher than the reference's, as in the paper"
    run = run_sizes(project.corpus.trained_tokens, project.seq_len)
    return f"""\
# The baseline: the model, continued on every token of the corpus.
base: reference.yaml
run_dir: {_quoted(f"{folder}/runs/clm")}
data: {{train: {_quoted(f"{folder}/datasets/corpus")}}}
train:
  epochs: 1\t# every row once
  global_batch_tokens: {run.batch_tokens}
  lr: {rates.lr}\t# {note}
  warmup_tokens: {run.warmup_tokens}\t# 1%
validation:{_heldout(project, "corpus", project.corpus)}
  every_tokens: {run.validation_tokens}
checkpoint: {{every_tokens: {run.checkpoint_tokens}}}
"""


def _slm(project: Project) -> str:
    sizes, folder = model_sizes(project.parameters, project.seq_len), project.folder
    return f"""\
# Selective language modeling: the baseline's run, trained on the tokens with the largest excess loss.
base: clm.yaml
run_dir: {_quoted(f"{folder}/runs/slm")}
data: {{train: {_quoted(f"{folder}/datasets/corpus-scored")}}}
train: {{objective: slm}}
slm:
  keep_ratio: {sizes.keep_ratio}\t# the share of tokens to train on; the paper's: 0.6 at 1B, 0.7 at 7B
  criterion: excess\t# the model's loss minus the reference's
  mode: exact\t# running saves a forward pass where a step has several micro-steps
  reference: {_quoted(f"{folder}/models/reference")}
"""


def _batch_note(batch_tokens: int, seq_len: int) -> str:
    rows = f"per step, {batch_tokens // seq_len} rows"
    is_papers = batch_tokens >= LARGEST_BATCH_TOKENS
    return f"{rows}; {'as in the paper' if is_papers else 'the 1M of the paper would leave too few steps'}"


def _lr_note(project: Project) -> str:
    """Of the reference's learning rate: for which weights it is, and which one is for others."""
    other = learning_rates(project.parameters, untrained=not project.untrained).reference_lr
    if project.untrained:
        return f"for new weights: no norm of the model was trained; a trained model needs about {other}"
    whose = "the paper's" if project.parameters >= SMALL else "our guess"
    return f"{whose} for a trained model of about this size; new weights need about {other}"


def _heldout(project: Project, name: str, look: TextLook) -> str:
    """The validation set of a text; nothing where no document of it is held out."""
    if not heldout_fraction(look.documents):
        return ""
    return f"\n  sets:\n    {name}: {{dataset: {_quoted(f'{project.folder}/datasets/{name}')}, max_rows: 512}}"


def _quoted(text: str) -> str:
    """Any text as a scalar of YAML, within a list too."""
    return to_yaml([text], one_line=True).strip()[1:-1]
