"""Jobs that are submitted to the Slurm cluster, watched from outside."""

from pathlib import Path

from tests.launched import ROOT
from tests.multinode.slurm_cluster import SlurmCluster

SCRIPTS = Path("launcher") / "slurm"
_LONGEST_START_SECONDS = 120


class SlurmJob:
    """`sbatch ARGUMENT ...`, called in the project's folder."""

    def __init__(
        self, cluster: SlurmCluster, output: Path, *arguments: str | Path, environment: dict[str, str] | None = None
    ) -> None:
        """All that it says goes to the file `output`."""
        self._cluster = cluster
        self._output = output
        options = [f"--output={output}", "--open-mode=append"]
        self.number = cluster.submit(*options, *arguments, cwd=ROOT, environment=environment)

    @property
    def output(self) -> str:
        """All that it has said so far, in all of its attempts."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def wait_until_it_says(self, text: str) -> None:
        """Waits, as long as a job may need for its start."""
        self._cluster.wait_until(lambda: text in self.output or self._has_ended, seconds=_LONGEST_START_SECONDS)
        assert text in self.output, self.output

    def wait_until_it_waits(self, *, seconds: float) -> None:
        """Until it is back in the queue."""
        self._cluster.wait_until(lambda: self._state == "PENDING" or self._has_ended, seconds=seconds)
        assert not self._has_ended, self.output

    def end(self, *, seconds: float) -> dict[str, str]:
        """Waits for its end, and gives what Slurm knows of it then."""
        self._cluster.wait_until(lambda: self._has_ended, seconds=seconds)
        return self.facts()

    def facts(self) -> dict[str, str]:
        """What Slurm knows of it: JobState, ExitCode, Restarts, …"""
        fields = self._cluster.run("scontrol", "--oneliner", "show", "job", str(self.number)).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    @property
    def _state(self) -> str:
        return self.facts()["JobState"]

    @property
    def _has_ended(self) -> bool:
        return self._state in ("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT")
