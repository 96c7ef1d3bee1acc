"""Whatever is not as it was written is found, named, and found with everything else."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import (
    TOKENIZER,
    Manifest,
    read_manifest,
    write_manifest,
)
from megaslm.dataset.shards import RowFormat
from megaslm.errors import DataError
from megaslm.inspect import verify as verification
from megaslm.inspect.verify import Verification, progress_bar, verify
from tests.messages import Says
from tests.toy import VOCAB_SIZE
from tests.verified import FORMATS, SEQ_LEN, found_in, make


@pytest.fixture(scope="module", params=FORMATS, ids=FORMATS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "dataset"
    make(folder, FORMATS[request.param])
    return folder


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "dataset"))


def files_of(dataset: Path) -> list[Path]:
    return sorted(path for path in dataset.rglob("*") if path.is_file())


def test_a_whole_dataset_passes(whole: Path) -> None:
    moved: list[tuple[int, int]] = []
    found = verify(whole, workers=2, on_progress=lambda done, total: moved.append((done, total)))
    stored = sum(path.stat().st_size for path in files_of(whole) if ".mds" in path.name)
    assert (found.problems, found.warnings) == ((), ())
    assert (found.parts, found.rows, found.bytes, found.workers) == (4, 80, stored, 2)
    assert moved[-1] == (stored, stored)


@pytest.mark.parametrize("count", [60, pytest.param(334, marks=pytest.mark.slow)])
def test_a_byte_flipped_anywhere_is_found_and_its_file_named(dataset: Path, count: int) -> None:
    """So many places in each format, in every file, the bytes of all files alike."""
    generator = random.Random(0)
    files = files_of(dataset)
    sizes = [path.stat().st_size for path in files]
    places = [(path, generator.randrange(path.stat().st_size)) for path in files]
    chosen = generator.choices(files, sizes, k=count - len(files))
    for path, place in places + [(path, generator.randrange(path.stat().st_size)) for path in chosen]:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[place] ^= generator.randrange(1, 256)
        path.write_bytes(flipped)
        problems = found_in(dataset)
        assert problems, f"{path} at {place}"
        name = path.relative_to(dataset).as_posix()
        assert any(problem.startswith(f"{name} ") for problem in problems), f"{name} at {place}: {problems}"
        path.write_bytes(content)
    assert found_in(dataset) == []


def first_part(dataset: Path) -> Path:
    return dataset / "train" / "a" / "part-00000"


def first_shard(dataset: Path) -> Path:
    return next(path for path in files_of(first_part(dataset)) if ".mds" in path.name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_shard(dataset: Path) -> None:
    cut(first_shard(dataset))


def drop_shard(dataset: Path) -> None:
    first_shard(dataset).unlink()


def cut_part_index(dataset: Path) -> None:
    cut(first_part(dataset) / "index.json")


def cut_merged_index(dataset: Path) -> None:
    cut(dataset / "train" / "a" / "index.json")


def drop_part(dataset: Path) -> None:
    shutil.rmtree(first_part(dataset))


def add_part(dataset: Path) -> None:
    shutil.copytree(first_part(dataset), first_part(dataset).with_name("part-00007"))


def swap_parts(dataset: Path) -> None:
    one, other, between = first_part(dataset), first_part(dataset).with_name("part-00001"), dataset / "between"
    for source, target in ((one, between), (other, one), (between, other)):
        source.rename(target)


def edit_manifest(dataset: Path) -> None:
    path = dataset / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 40', '"rows": 41', 1))


def drop_tokenizer_config(dataset: Path) -> None:
    (dataset / TOKENIZER / "tokenizer_config.json").unlink()


DAMAGE: list[tuple[Callable[[Path], None], list[str]]] = [
    (cut_shard, ["train/a/part-00000/shard.00000.mds"]),
    (drop_shard, ["train/a/part-00000/shard.00000.mds"]),
    (cut_part_index, ["train/a/part-00000/index.json"]),
    (cut_merged_index, ["train/a/index.json"]),
    (drop_part, ["train/a/part-00000"]),
    (add_part, ["train/a/part-00007"]),
    (swap_parts, ["train/a/part-00000/index.json", "train/a/part-00001/index.json"]),
    (edit_manifest, ["manifest.json"]),
    (drop_tokenizer_config, ["tokenizer/tokenizer_config.json"]),
]


@pytest.mark.parametrize(("corruption", "paths"), DAMAGE, ids=[corruption.__name__ for corruption, _ in DAMAGE])
def test_damage_is_named(dataset: Path, corruption: Callable[[Path], None], paths: list[str]) -> None:
    corruption(dataset)
    assert [problem.path.removesuffix(".zstd") for problem in verify(dataset).problems] == paths


@pytest.mark.parametrize("corruption", [corruption for corruption, _ in DAMAGE])
def test_damage_is_told(tmp_path: Path, corruption: Callable[[Path], None], says: Says) -> None:
    make(tmp_path, FORMATS["tokens"])
    corruption(tmp_path)
    says("\n".join(found_in(tmp_path)))


def test_the_manifest_of_another_dataset_is_found_out(dataset: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", RowFormat(SEQ_LEN, VOCAB_SIZE, shard_bytes=701))
    shutil.copy(tmp_path / "other" / "manifest.json", dataset / "manifest.json")
    problems = found_in(dataset)
    for name in ("a", "b"):
        for number in (0, 1):
            assert any(problem.startswith(f"train/{name}/part-0000{number}/index.json ") for problem in problems)


def test_all_problems_are_reported(dataset: Path) -> None:
    for corruption in (cut_shard, drop_tokenizer_config, add_part, cut_merged_index):
        corruption(dataset)
    cut(dataset / "train" / "b" / "part-00001" / "index.json")
    paths = [problem.path.removesuffix(".zstd") for problem in verify(dataset).problems]
    assert paths == [
        "tokenizer/tokenizer_config.json",
        "train/a/part-00007",
        "train/a/part-00000/shard.00000.mds",
        "train/a/index.json",
        "train/b/part-00001/index.json",
    ]


def rewrite_manifest(dataset: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = read_manifest(dataset).model_dump(mode="json")
    change(content)
    write_manifest(dataset, Manifest.model_validate(content))


def miscount_targets(content: dict) -> None:
    content["splits"]["train"]["a"]["tokens"] += 1


def miscount_rows(content: dict) -> None:
    content["splits"]["train"]["a"]["rows"] += 1


def other_tokens(content: dict) -> None:
    content["splits"]["train"]["b"]["parts"][0]["tokens_sha256"] = "0" * 64


def other_eos(content: dict) -> None:
    content["eos_id"] = 3


def other_meaning(content: dict) -> None:
    content["tokenizer_sha256"] = "0" * 64


def larger_vocabulary(content: dict) -> None:
    content["vocab_size"] = 65


UNTRUE: list[tuple[Callable[[dict], None], str]] = [
    (miscount_targets, "manifest.json"),
    (miscount_rows, "manifest.json"),
    (other_tokens, "train/b/part-00000"),
    (other_eos, "tokenizer/tokenizer.json"),
    (other_meaning, "tokenizer/tokenizer.json"),
    (larger_vocabulary, "tokenizer/tokenizer.json"),
]


@pytest.mark.parametrize(("change", "path"), UNTRUE, ids=[change.__name__ for change, _ in UNTRUE])
def test_what_the_manifest_says_is_compared(dataset: Path, change: Callable[[dict], None], path: str) -> None:
    rewrite_manifest(dataset, change)
    assert path in [problem.path for problem in verify(dataset).problems]


@pytest.mark.parametrize("change", [change for change, _ in UNTRUE])
def test_what_the_manifest_says_beside_what_is_there(
    tmp_path: Path, change: Callable[[dict], None], says: Says
) -> None:
    make(tmp_path, FORMATS["tokens"])
    rewrite_manifest(tmp_path, change)
    says("\n".join(found_in(tmp_path)))


def test_what_is_no_part_of_it_is_a_warning(dataset: Path) -> None:
    shutil.copytree(first_part(dataset), first_part(dataset).with_name(".unfinished-part-00009"))
    (dataset / ".prepare").mkdir()
    (dataset / "cost.json").write_text("{}")
    for stray in (first_part(dataset) / "more.json", dataset / "train" / "notes", dataset / TOKENIZER / "extra.txt"):
        stray.write_text("")
    found = verify(dataset)
    assert found.problems == ()
    assert {warning.path for warning in found.warnings} == {
        ".prepare",
        "tokenizer/extra.txt",
        "train/a/.unfinished-part-00009",
        "train/a/part-00000/more.json",
        "train/notes",
    }


def test_what_was_left_over_and_what_is_unknown_are_told_apart(tmp_path: Path, says: Says) -> None:
    make(tmp_path, FORMATS["tokens"])
    (tmp_path / ".prepare").mkdir()
    (tmp_path / "train" / "notes").write_text("")
    says("\n".join(f"{warning.path} {warning.finding}" for warning in verify(tmp_path).warnings), "train/notes")


def test_a_shard_that_was_unpacked_beside_its_compressed_file_is_read_too(tmp_path: Path, says: Says) -> None:
    import pyarrow

    make(tmp_path, FORMATS["compressed"])
    packed = first_shard(tmp_path)
    shard = json.loads((packed.parent / "index.json").read_text())["shards"][0]
    unpacked = packed.with_name(shard["raw_data"]["basename"])
    content = pyarrow.decompress(packed.read_bytes(), shard["raw_data"]["bytes"], codec="zstd", asbytes=True)
    unpacked.write_bytes(content)
    assert verify(tmp_path).problems == verify(tmp_path).warnings == ()
    unpacked.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    (problem,) = found_in(tmp_path)
    says(problem, "train/a/part-00000/shard.00000.mds", "xxh3_64", "shard.00000.mds.zstd")


def test_shards_without_a_checksum_are_not_trusted(dataset: Path) -> None:
    folder = first_part(dataset)
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        for file in (shard["raw_data"], shard["zip_data"]):
            if file is not None:
                file["hashes"] = {}
    (folder / "index.json").write_text(json.dumps(index))
    sha256 = hashlib.sha256((folder / "index.json").read_bytes()).hexdigest()
    rewrite_manifest(dataset, lambda content: content["splits"]["train"]["a"]["parts"][0].update(index_sha256=sha256))
    merge_index(dataset / "train" / "a", read_manifest(dataset).splits["train"]["a"].parts)
    problems = found_in(dataset)
    assert problems
    assert all("xxh3_64" in problem for problem in problems)


def test_into_a_file_progress_comes_as_lines(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    now = 0.0
    monkeypatch.setattr(verification.time, "monotonic", lambda: now)
    console = Console(file=StringIO(), width=200)
    with progress_bar(console, "verify · it") as show:
        for second in range(12):
            now = float(second)
            show(second * 1_000_000, 20_000_000)
    assert isinstance(console.file, StringIO)
    quarter, half = console.file.getvalue().splitlines()
    says(quarter, "25%", "5.0 MB", "20.0 MB", "1.0 MB/s", "15.0 s")
    says(half, "50%", "10.0 MB", "20.0 MB", "1.0 MB/s", "10.0 s")


def test_without_a_dataset_there_is_nothing_to_verify(tmp_path: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        verify(tmp_path / "nowhere")
    says(refused, tmp_path / "nowhere")
    with pytest.raises(DataError) as refused:
        verify(tmp_path)
    says(refused, tmp_path)


def test_a_corrupt_manifest_ends_the_look(dataset: Path) -> None:
    edit_manifest(dataset)
    cut_shard(dataset)
    found: Verification = verify(dataset)
    assert [problem.path for problem in found.problems] == ["manifest.json"]
    assert found.bytes == 0
