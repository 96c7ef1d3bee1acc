"""What stands in the output of an evaluation: the same one, finished or not, another one, or something else."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import megaslm
from megaslm.errors import ConfigError, DataError, ModelError
from megaslm.evaluation.records import RESULTS, Description, Results
from megaslm.evaluation.request import EvaluationRequest
from megaslm.files import read_back, write_file
from megaslm.model.folder import check_model_folder
from megaslm.model.load import choose_precision
from megaslm.model.weight_files import weights_sha256
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILE


def describe(
    request: EvaluationRequest, device: torch.device, *, tasks: dict[str, str], data: dict[str, str]
) -> Description:
    """What is measured, and how; `tasks` and `data` are hashes of settings and of items. Raises ModelError."""
    weights = None
    if request.server is None:
        folder = Path(request.model)
        check_model_folder(folder)
        if not (folder / TOKENIZER_FILE).is_file():
            raise ModelError(
                f"{folder}: has no {TOKENIZER_FILE}; export the model again, or copy its tokenizer's files"
            )
        weights = weights_sha256(folder)
    return Description(
        model=request.model,
        weights_sha256=weights,
        server=request.server is not None,
        measure=request.measure,
        precision="server" if request.server is not None else choose_precision(request.precision, device),
        tasks=tasks,
        data=data,
        limit=request.limit,
        samples=request.samples,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        batch_rows=request.batch_rows,
        megaslm_version=megaslm.__version__,
    )


def finished(output: Path, description: Description) -> Results | None:
    """The results that are there already. Raises ConfigError where they are of another evaluation."""
    path = output / RESULTS
    if not path.is_file():
        return None
    results = read_back(Results, path.read_bytes(), str(path), "choose another output")
    _require_equal(results.description, description, output)
    return results


def working_folder(output: Path) -> Path:
    """Where an evaluation that is not finished keeps what is done."""
    return output / ".evaluate"


def claim(output: Path, description: Description, *, has_outcomes: Callable[[], bool]) -> None:
    """Makes the working folder, or takes over that of the same evaluation, or of one that has no outcome yet.

    Raises ConfigError where it holds outcomes of another evaluation, DataError where the output holds something else.
    """
    path = working_folder(output) / "description.json"
    if path.is_file() and has_outcomes():
        there = read_back(Description, path.read_bytes(), str(path), "choose another output")
        _require_equal(there, description, output)
        return
    if not path.is_file() and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists and holds no evaluation; choose another output")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, description.model_dump_json(indent=1))


def _require_equal(there: Description, now: Description, output: Path) -> None:
    before, after = there.model_dump(), now.model_dump()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        first = f"{changed[0]}: {_shown(before[changed[0]], after[changed[0]])}"
        raise ConfigError(
            f"{output}: holds an evaluation with another {', '.join(changed)} ({first}); choose another output, or "
            "evaluate with the same"
        )


def _shown(before: object, after: object) -> str:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({key for key in {**before, **after} if before.get(key) != after.get(key)})
        return f"differs in {', '.join(keys)}"
    return f"{before} there, {after} now"
