"""What a scoring job demands of its ranks and of their hosts."""

from dataclasses import asdict
from pathlib import Path

from megaslm.config.credentials import without_credentials
from megaslm.config.home import home_expanded
from megaslm.data.dataset.manifest import MANIFEST
from megaslm.data.storage.file_systems import is_remote
from megaslm.engine.preflight.demands import Demands
from megaslm.scoring.task import ScoreTask


def demands_of(task: ScoreTask) -> Demands:
    """What the ranks of a job have to have in common, and what their hosts need room for."""
    fetches = is_remote(str(task.dataset))
    folders = {
        "--reference": task.reference,
        "dataset": task.dataset,
        "output": task.output,
        "--work": task.working,
        "--cache": task.cache,
    }
    files = {"config.json of --reference": task.reference / "config.json"}
    if not fetches:
        files[f"{MANIFEST} of the dataset"] = Path(task.dataset) / MANIFEST
    options = {f"--{name.replace('_', '-')}": value for name, value in asdict(task.settings).items()}
    return Demands(
        # A URL that holds credentials is refused where it is opened, and must not be printed before.
        settings={name: without_credentials(str(value)) for name, value in {**folders, **options}.items()},
        files=files,
        cache=home_expanded(task.cache) if fetches else None,
    )
