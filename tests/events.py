"""What event files hold. Readers that follow the session log would hide some of it."""

from collections import defaultdict
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

Points = dict[str, list[tuple[int, float]]]
"""By tag, in their order: step and value."""


def points_in(folder: Path) -> Points:
    """Every number in the files of a folder."""
    points = defaultdict(list)
    for path in sorted(folder.glob("events*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    points[value.tag].append((event.step, value.simple_value))
    return dict(points)
