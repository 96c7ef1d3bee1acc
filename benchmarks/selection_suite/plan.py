"""The commands of the suite, each with what it needs, in the order of their use to a reader of the table."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from benchmarks.selection_suite.settings import AT, Suite, Training, merged

HELD_OUT = ("target", "near")


@dataclass(frozen=True)
class Run:
    """One training of an arm."""

    pair: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.pair}/{self.arm}/seed-{self.seed}"


class Scorer(NamedTuple):
    """The model whose losses are stored beside a text."""

    model: str
    seed: int
    top_logits: int = 0
    """How many of its most likely tokens are stored per target."""

    @property
    def name(self) -> str:
        """That of the model, and what differs from the usual."""
        seed = f"-seed-{self.seed}" if self.seed else ""
        return f"{self.model}{seed}{f'-top-{self.top_logits}' if self.top_logits else ''}"


@dataclass(frozen=True)
class Stage:
    """One command of MegaSLM. Given again, it resumes where it was interrupted."""

    name: str
    verb: Literal["prepare", "train", "export", "score"]
    arguments: tuple[str, ...]
    output: Path
    """The folder that it writes."""
    needs: tuple["Stage", ...] = ()
    """The stages that must be done before."""
    settings: Path | None = None
    """The YAML file that it reads."""
    content: str = ""
    """What that file says."""
    tokens: int = 0
    """Targets that a training reads."""
    run: Run | None = None
    """The arm that it trains; None for what arms need."""

    @cached_property
    def sha256(self) -> str:
        """The fingerprint of all settings that decide what it writes."""
        said = [self.arguments, self.content, [need.sha256 for need in self.needs]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def in_order(arms: Mapping[str, Training], pairs: Iterable[str], suite: Suite) -> list[Run]:
    """All runs. The headline arms come first, with one seed after the other; of a seed the pairs in their order. Models
    of other sizes come last."""
    runs = [
        (AT in pair, arm.headline is None, seed, place, Run(pair, name, seed))
        for place, pair in enumerate(pairs)
        for name, arm in arms.items()
        for seed in range(1, _seeds(pair, name, arm, suite) + 1)
    ]
    return [run for *_, run in sorted(runs, key=lambda entry: entry[:4])]


def _seeds(pair: str, name: str, arm: Training, suite: Suite) -> int:
    if AT in pair:
        return suite.scaling.seeds if suite.scaling is not None and name in suite.scaling.arms else 0
    return suite.seeds.headline if arm.headline is not None else suite.seeds.other


def with_needs(stages: Iterable[Stage]) -> list[Stage]:
    """The stages, each after all that it needs, each once."""
    found: dict[str, Stage] = {}

    def add(stage: Stage) -> None:
        for need in stage.needs:
            add(need)
        found.setdefault(stage.name, stage)

    for stage in stages:
        add(stage)
    return list(found.values())


class PairPlan:
    """The stages of one pair, whose texts lie in `folder`/texts."""

    def __init__(
        self, folder: Path, suite: Suite, models: Mapping[str, Training], arms: Mapping[str, Training]
    ) -> None:
        self._folder, self._suite, self._models, self._arms = folder, suite, models, arms
        self._made: dict[str, Stage] = {}

    def stage_of(self, run: Run) -> Stage:
        """The training of an arm."""
        return self._training(run.arm, run.seed, run)

    def folder_of(self, run: Run) -> Path:
        """The folder of a run."""
        return self._folder / "runs" / run.arm / f"seed-{run.seed}"

    def _training(self, name: str, seed: int, run: Run | None = None) -> Stage:
        label = f"{name}/seed-{seed}" if run is not None else f"models/{name}/seed-{seed}"
        if label in self._made:
            return self._made[label]
        training = self._models[name] if run is None else self._arms[name]
        output = self._folder / "models" / name / f"seed-{seed}" if run is None else self.folder_of(run)
        needs = [self._prepared(text) for text in (*training.reads, "probe", "heldout")]
        if training.starts_from is not None:
            needs.append(self._training(training.starts_from, seed))
        scorer = _scorer_of(training, seed)
        if scorer is not None:
            needs += [self._scored(text, scorer) for text in training.reads]
            needs.append(self._scored("probe", scorer._replace(top_logits=0)))
        config = self._config(training, seed, output, is_arm=run is not None)
        return self._stage(label, "train", ("--resume",), output, needs, config, run)

    def _config(self, training: Training, seed: int, output: Path, *, is_arm: bool) -> dict[str, Any]:
        config = merged(self._suite.run, training.run)
        model, train, rows = config.pop("model"), config["train"], self._suite.validation_rows
        if training.starts_from is not None:
            origin = str(self._folder / "models" / training.starts_from / f"seed-{seed}")
            model = {key: value for key, value in model.items() if key != "from_scratch"} | {"from_run": origin}
        steps = round(training.length * train["total_tokens"] / train["global_batch_tokens"])
        scorer = _scorer_of(training, seed)
        datasets = [(text, str(self._tokens(text, scorer))) for text in training.reads]
        alone = len(datasets) == 1
        named = {"train": datasets[0][1]} if alone else {"streams": {text: {"dataset": at} for text, at in datasets}}
        sets = {name: self._held_out("heldout", name, getattr(rows, name)) for name in self._held_out_texts}
        changes: dict[str, Any] = {
            "run_dir": str(output),
            "seed": seed,
            "model": model,
            "data": {"shuffle_seed": seed, **named},
            "train": {"total_tokens": max(1, steps) * train["global_batch_tokens"]},
            "validation": {"sets": {**sets, "corpus": self._held_out("probe", "corpus", rows.corpus)}},
            "probe": {"dataset": str(self._tokens("probe", scorer and scorer._replace(top_logits=0)))},
        }
        # Models that arms share are measured at their ends alone.
        at_ends = {"validation": {"every_tokens": None}, "probe": {"every_tokens": None, "dataset": None}}
        return merged(config, changes, {} if is_arm else at_ends)

    def _held_out(self, dataset: str, domain: str, rows: int) -> dict[str, Any]:
        return {"dataset": str(self._tokens(dataset)), "split": "train", "domains": [domain], "max_rows": rows}

    @cached_property
    def _held_out_texts(self) -> list[str]:
        return [name for name in HELD_OUT if (self._folder / "texts" / f"{name}.jsonl").is_file()]

    def _tokens(self, text: str, scorer: Scorer | None = None) -> Path:
        return self._folder / ("tokens" if scorer is None else f"scored/{scorer.name}") / text

    def _prepared(self, text: str) -> Stage:
        """The tokens of a text. The corpus trains the tokenizer of all."""
        label = f"tokens/{text}"
        if label in self._made:
            return self._made[label]
        corpus = self._tokens("corpus")
        trains = {"train_sentencepiece": {"vocab_size": self._suite.vocab_size}}
        names = {"heldout": self._held_out_texts, "probe": ["corpus"]}.get(text, [text])
        files = {"probe": ["probe"]}.get(text, names)
        recipe = {
            "name": text,
            "licence": "as its sources",
            "seq_len": self._suite.seq_len,
            "tokenizer": trains if text == "corpus" else {"huggingface": str(corpus / "tokenizer")},
            "sources": [
                {"domain": name, "reader": "jsonl", "paths": [str(self._folder / "texts" / f"{file}.jsonl")]}
                for name, file in zip(names, files, strict=True)
            ],
            "heldout_fraction": 0,
        }
        needs = [] if text == "corpus" else [self._prepared("corpus")]
        output = self._tokens(text)
        return self._stage(label, "prepare", (str(output), "--workers", "1"), output, needs, recipe)

    def _scored(self, text: str, scorer: Scorer) -> Stage:
        """The losses of a model on a text, the entropies of its predictions, and any most likely tokens."""
        exported = self._exported(scorer.model, scorer.seed)
        output = self._tokens(text, scorer)
        top = ("--top-logits", str(scorer.top_logits)) if scorer.top_logits else ()
        arguments = (str(self._tokens(text)), str(output), "--reference", str(exported.output), "--entropy", *top)
        needs = [self._prepared(text), exported]
        return self._stage(str(output.relative_to(self._folder)), "score", arguments, output, needs)

    def _exported(self, model: str, seed: int) -> Stage:
        name = Scorer(model, seed).name
        trained = self._training(model, seed)
        output = self._folder / "exports" / name
        return self._stage(f"exports/{name}", "export", (str(trained.output), str(output)), output, [trained])

    def _stage(
        self,
        label: str,
        verb: Literal["prepare", "train", "export", "score"],
        arguments: tuple[str, ...],
        output: Path,
        needs: Iterable[Stage],
        settings: dict[str, Any] | None = None,
        run: Run | None = None,
    ) -> Stage:
        name = f"{self._folder.name}/{label}"
        if settings is None:
            stage = Stage(name, verb, (verb, *arguments), output, tuple(needs))
        else:
            path = self._folder / "settings" / f"{label.replace('/', '-')}.yaml"
            content = yaml.safe_dump(settings, sort_keys=False)
            tokens = settings["train"]["total_tokens"] if verb == "train" else 0
            stage = Stage(name, verb, (verb, str(path), *arguments), output, tuple(needs), path, content, tokens, run)
        self._made[label] = stage
        return stage


def _scorer_of(training: Training, seed: int) -> Scorer | None:
    """The reference of all seeds; or, as the history of a run, the model that the run itself starts from."""
    if training.scored_by is None:
        return None
    is_history = training.scored_by == training.starts_from
    return Scorer(training.scored_by, seed if is_history else 0, training.top_logits)
