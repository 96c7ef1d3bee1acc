"""What a rank finds out about itself and its host."""

import errno
import os
import shutil
import time
from pathlib import Path

import megaslm
from megaslm.engine.rank_names import Rank
from megaslm.health.clocks import ClockReading
from megaslm.health.findings import Requirements
from megaslm.health.host_facts import Disk, available_memory_bytes, look, sources_sha256
from tests.messages import Says

KIB, GIB = 1 << 10, 1 << 30


def test_the_hash_of_the_code_depends_on_every_byte_and_name_and_on_nothing_else(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(Path(megaslm.__file__).parent, tmp_path / "copy"))
    usual = sources_sha256(copy)
    (copy / "engine" / "__pycache__").mkdir(exist_ok=True)
    (copy / "engine" / "__pycache__" / "some.pyc").write_bytes(b"compiled")
    assert sources_sha256(Path(shutil.copytree(copy, tmp_path / "elsewhere"))) == usual
    changed = copy / "slm" / "choice.py"
    content = changed.read_bytes()
    changed.write_bytes(content + b"#")
    assert sources_sha256(copy) != usual
    changed.write_bytes(content)
    assert sources_sha256(copy) == usual
    changed.rename(copy / "slm" / "chosen.py")
    assert sources_sha256(copy) != usual


def test_a_files_content_counts_and_why_it_cannot_be_read(tmp_path: Path, says: Says) -> None:
    def contents() -> dict[str, str]:
        files = {"one": tmp_path / "one", "other": tmp_path / "other"}
        return look(Rank(0, "here"), Requirements({}, files), ClockReading(0.0, 0.0)).files

    (tmp_path / "one").write_text("content")
    before = contents()
    says(before["other"], os.strerror(errno.ENOENT))
    (tmp_path / "other").write_text("content")
    assert contents() == {"one": before["one"], "other": before["one"]}
    (tmp_path / "other").write_text("Content")
    assert contents()["other"] != before["one"]


def test_a_folder_has_the_room_of_the_file_system_on_which_it_will_lie(tmp_path: Path) -> None:
    disk = Disk.of(tmp_path / "not" / "there" / "yet")
    assert disk.folder == str(tmp_path / "not" / "there" / "yet")
    assert 0 < disk.free_bytes < shutil.disk_usage(tmp_path).total


def test_of_several_limits_of_memory_the_narrowest_counts(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    step = groups / "job" / "step"
    step.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {64 * GIB // KIB} kB\nMemAvailable: {32 * GIB // KIB} kB\n")
    (proc / "self" / "cgroup").write_text("4:memory:/other\n0::/job/step\n")
    assert available_memory_bytes(proc, groups) == 32 * GIB
    limit(groups / "job", maximum=str(16 * GIB), used=10 * GIB, inactive_file=3 * GIB)
    limit(step, maximum="max", used=10 * GIB, inactive_file=0)
    assert available_memory_bytes(proc, groups) == 9 * GIB
    limit(step, maximum=str(8 * GIB), used=7 * GIB, inactive_file=0)
    assert available_memory_bytes(proc, groups) == GIB
    # As inside a container, which sees its own group as the root.
    limit(groups, maximum=str(GIB), used=GIB // 2, inactive_file=0)
    (proc / "self" / "cgroup").write_text("0::/\n")
    assert available_memory_bytes(proc, groups) == GIB // 2


def limit(group: Path, *, maximum: str, used: int, inactive_file: int) -> None:
    (group / "memory.max").write_text(f"{maximum}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\n")


def test_this_host_is_looked_at_without_a_trace(tmp_path: Path) -> None:
    requirements = Requirements({"seed": "0"}, checkpoints=tmp_path / "run" / "checkpoints", checkpoint_bytes=12)
    facts = look(Rank(0, "here"), requirements, ClockReading(time.time(), 0.0))
    assert facts.memory_bytes > 0
    assert facts.versions["torch"].startswith("2.")
    assert facts.settings == {"seed": "0"}
    assert list(tmp_path.iterdir()) == []
