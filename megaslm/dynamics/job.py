"""From the measurements of a run to the files of its token dynamics."""

import json
from dataclasses import asdict
from pathlib import Path

from megaslm.dynamics.examples import examples_of, token_texts
from megaslm.dynamics.parquet_table import write_trajectories
from megaslm.dynamics.summary import DynamicsSummary, analyse, summarise
from megaslm.dynamics.trajectories import read_trajectories
from megaslm.errors import ConfigError
from megaslm.files import write_file
from megaslm.tokenizer.tokenizer import load_tokenizer

SUMMARY, TRAJECTORIES = "dynamics.json", "trajectories.parquet"
_EXAMPLES_EACH = 5


def dynamics(run: Path, measurements: Path, tokenizer: Path, output: Path) -> DynamicsSummary:
    """Classifies the probe tokens of a run, and writes dynamics.json and trajectories.parquet.

    Args:
        run: the run folder, for its name.
        measurements: the folder of its probe rows and their losses.
        tokenizer: a folder with the tokenizer of the rows.
        output: the folder to write into; made if missing.

    Raises:
        DataError: there are too few measurements, or a file is corrupt.
        ConfigError: the output cannot be written.
    """
    found = read_trajectories(measurements, run)
    fitted = analyse(found)
    texts = token_texts(load_tokenizer(tokenizer), found.rows)
    examples = examples_of(found, fitted.lines.change, fitted.classes, texts, each=_EXAMPLES_EACH)
    summary = summarise(str(run), found, fitted, examples)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_trajectories(output / TRAJECTORIES, found, fitted, texts)
        write_file(output / SUMMARY, json.dumps(asdict(summary), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error}); choose another folder with --output") from error
    return summary
