"""Which code a rank runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import megaslm
from megaslm.engine.preflight.findings import Trait
from megaslm.engine.rank_names import Rank


@dataclass(frozen=True)
class Code:
    """MegaSLM as a rank has it. Ranks of unlike versions exchange this, so that its fields have to stay as they are."""

    rank: Rank
    version: str
    sources_sha256: str

    @classmethod
    def of(cls, rank: Rank) -> "Code":
        """Reads the package that this process runs."""
        return cls(rank, megaslm.__version__, sources_sha256(Path(megaslm.__file__).parent))


def sources_sha256(package: Path) -> str:
    """Of names and contents of all Python files of a package, in the order of their paths."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{digest}  {path.relative_to(package).as_posix()}\n".encode())
    return total.hexdigest()


def code_trait(codes: Sequence[Code]) -> Trait:
    """That all run the same."""
    return Trait(
        "megaslm's code",
        [f"{code.version} ({code.sources_sha256[:12]})" for code in codes],
        "bring the copies on all hosts to one state",
    )
