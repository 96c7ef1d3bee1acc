"""Which files a source of a recipe means."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from megaslm.config.recipe import Source
from megaslm.data.documents import InputFile
from megaslm.data.python_stdlib import standard_library_files
from megaslm.errors import DataError

USUAL_SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "text": (".txt",),
    "tree": ("",),
}


def find_files(source: Source) -> list[InputFile]:
    """Every file of a source, each once: paths in the recipe's order, the files of a folder or a glob sorted.

    Raises DataError where a path leads to no file.
    """
    if source.reads_standard_library:
        return standard_library_files(source.reader)
    found: dict[Path, InputFile] = {}
    for pattern in source.paths:
        matches = [path for place in _places(pattern) for path in _files_of(place, source)]
        if not matches:
            raise DataError(f"domain {source.domain}: {_why_nothing(pattern, source)}")
        for path in matches:
            found.setdefault(path, describe(path, label=path.as_posix()))
    return list(found.values())


def describe(path: Path, label: str, group: str | None = None) -> InputFile:
    """A file as it is now."""
    status = path.stat()
    return InputFile(path, label, status.st_size, status.st_mtime_ns, group)


def _places(pattern: str) -> list[Path]:
    """The files and folders that a path or a glob means."""
    path = Path(pattern).expanduser()
    if path.exists():
        return [path]
    parts = path.parts
    first = next((number for number, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    if first == len(parts):
        return []
    return sorted(Path(*parts[:first]).glob(str(Path(*parts[first:]))))


def _files_of(place: Path, source: Source) -> Iterable[Path]:
    return [place] if place.is_file() else _walk(place, source)


def _walk(folder: Path, source: Source) -> Iterator[Path]:
    suffixes = source.suffixes or USUAL_SUFFIXES[source.reader]
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        excluded = any(fnmatchcase(inside, pattern) for pattern in source.exclude)
        if path.name.endswith(suffixes) and not excluded and path.is_file():
            yield path


def _why_nothing(pattern: str, source: Source) -> str:
    suffixes = source.suffixes or USUAL_SUFFIXES[source.reader]
    wanted = f"; in folders, files that end in {' or '.join(suffixes)} are read" if any(suffixes) else ""
    return f"no file matches {pattern!r} (relative to {Path.cwd()}){wanted}"
