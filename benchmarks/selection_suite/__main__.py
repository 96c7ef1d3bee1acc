"""Trains token selection and its rivals on equal terms, and says what each arm bought: `make evidence`.

Every stage is a command of MegaSLM that any user could give. The same command resumes after any interruption.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from benchmarks.selection_suite.measures import TARGET_PLACE, measures_of
from benchmarks.selection_suite.pairs import Sizes, Texts, pairs
from benchmarks.selection_suite.plan import PairPlan, Run, Stage, in_order, with_needs
from benchmarks.selection_suite.results import write_results
from benchmarks.selection_suite.runner import Outcome, Runner
from benchmarks.selection_suite.settings import AT, HERE, Training, read_arms, read_models, read_suite
from benchmarks.selection_suite.truth import write_documents
from megaslm.errors import ConfigError, MegaSLMError
from megaslm.files import new_folder
from megaslm.observe.records import read_validations

Entry = TypeVar("Entry")
_STOPPED = 75
_ORIGIN = "origin.json"
"""The file beside the texts of a pair that says what they were made of."""


def main() -> int:
    """Returns 0 where everything is done or the budget is spent, 1 where a stage failed, 2 for a mistake of the user,
    75 where the suite was told to stop."""
    arguments = _parser().parse_args()
    try:
        return _run(arguments)
    except MegaSLMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection_suite", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where everything is written; by default runs/evidence")
    parser.add_argument("--quick", action="store_true", help="small models, the headline arms and two seeds")
    parser.add_argument("--data", help="folder with problems/ and text/; by default $MEGASLM_SHARED_DATA")
    parser.add_argument("--budget", type=float, metavar="HOURS", help="begin no stage that would end later")
    parser.add_argument("--cores", type=int, default=1, help="runs side by side, each with one thread (default 1)")
    parser.add_argument("--pairs", type=_names, help="only these pairs of target and corpus, as A,B")
    parser.add_argument("--arms", type=_names, help="only these arms, as A,B")
    parser.add_argument("--arms-folder", type=Path, default=HERE / "arms", help="a folder of arms, one YAML file each")
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")


def _run(arguments: argparse.Namespace) -> int:
    folder = (arguments.folder or Path("runs") / ("evidence-quick" if arguments.quick else "evidence")).absolute()
    shared: str | None = arguments.data or (None if arguments.quick else os.environ.get("MEGASLM_SHARED_DATA"))
    suite = read_suite(quick=arguments.quick)
    arms = _chosen(read_arms(arguments.arms_folder), arguments.arms, "--arms")
    known = pairs(Path(shared) if shared else None)
    known |= {name: known[name.partition(AT)[0]] for name in suite.sized_pairs(known)}
    makers = _chosen(known, arguments.pairs, "--pairs")
    plans: dict[str, PairPlan] = {}
    for pair, make in makers.items():
        _write_texts(folder / pair, make, Sizes(suite.corpus_bytes, suite.heldout_bytes), shared)
        plans[pair] = PairPlan(folder / pair, suite.for_pair(pair), read_models(), arms)
    stages = with_needs(plans[run.pair].stage_of(run) for run in in_order(arms, plans, suite))
    runner = Runner(
        folder,
        arguments.cores,
        None if arguments.budget is None else 3600 * arguments.budget,
        say=lambda line: print(line, flush=True),
        result_of=_last_loss,
    )
    outcome = runner.carry_out(stages)
    _show(folder, plans, arms, outcome)
    return _STOPPED if outcome.stopped else 1 if outcome.failed else 0


def _chosen(known: dict[str, Entry], names: list[str] | None, option: str) -> dict[str, Entry]:
    """The named entries. Raises ConfigError for a name that there is not."""
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ConfigError(f"{option} {','.join(names or ())}: no {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: value for name, value in known.items() if names is None or name in names}


def _write_texts(pair: Path, make: Callable[[Sizes], Texts], sizes: Sizes, shared: str | None) -> None:
    """The texts of a pair, all files or none. Raises ConfigError where others were written before."""
    folder = pair / "texts"
    origin = json.dumps({"data": shared and str(Path(shared).absolute()), **asdict(sizes)}, indent=1)
    if folder.exists():
        found = (folder / _ORIGIN).read_text(encoding="utf-8")
        if found != origin:
            raise ConfigError(
                f"{folder}: was written with {found}; now the settings are {origin}; undo the change, or name another "
                "--folder"
            )
        return
    print(f"{pair.name}: writes the texts", flush=True)
    pair.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as unfinished:
        for name, documents in vars(make(sizes)).items():
            if documents:
                write_documents(unfinished / f"{name}.jsonl", documents)
        (unfinished / _ORIGIN).write_text(origin, encoding="utf-8")


def _last_loss(stage: Stage) -> str:
    """The last loss of the target of a finished training."""
    if stage.verb != "train":
        return ""
    found = [each for each in read_validations(stage.output / "metrics.jsonl") if each.name == TARGET_PLACE]
    return f"{found[-1].loss:.4f} nats on the target" if found else ""


def _show(folder: Path, plans: dict[str, PairPlan], arms: dict[str, Training], outcome: Outcome) -> None:
    """Prints and writes the results of all runs that are done, and names what is missing."""
    done = [stage for stage in outcome.finished if stage.run is not None]
    measured = []
    for pair in plans:
        runs: dict[Run, Path] = {stage.run: stage.output for stage in done if stage.run and stage.run.pair == pair}
        measured += measures_of(runs, folder / pair / "tokens" / "probe", folder / pair / "texts" / "probe.jsonl")
    if measured:
        print(write_results(folder, measured, [name for name, arm in arms.items() if arm.headline]))
        print(f"numbers: {folder / 'results.json'}, tables: {folder / 'results.md'}, figures: {folder}/*.svg")
    if outcome.failed:
        print(f"failed: {', '.join(stage.name for stage in outcome.failed)}; the same command tries them again")
    if outcome.left:
        print(f"{len(outcome.left)} stages are left; the same command resumes with them")


if __name__ == "__main__":
    sys.exit(main())
