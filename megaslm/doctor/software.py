"""What is installed: Python, MegaSLM, the libraries that it needs, its extras. Nothing here imports torch."""

import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from packaging.requirements import Requirement

import megaslm
from megaslm.doctor.check import Check
from megaslm.errors import BrokenLibrary

_OF_DEVELOPERS = "dev"
_ALWAYS = ""
"""The place of what every installation needs, among the names of extras."""
_SLOW_IMPORTS = (
    "megaslm.engine.zero",
    "megaslm.dataset.mosaic",
    "megaslm.model.selective_lm",
    "megaslm.observe.tensorboard",
)
"""The files that import torch, DeepSpeed, mosaicml-streaming, transformers and TensorBoard."""


def installation() -> Iterator[Check]:
    """Which MegaSLM runs under which Python."""
    folder = Path(megaslm.__file__).parent
    found = f"{megaslm.__version__} in {folder}; Python {platform.python_version()} ({sys.executable})"
    system = platform.platform()
    facts = {"version": megaslm.__version__, "folder": folder, "python": sys.version, "executable": sys.executable}
    yield Check("megaslm", "ok", f"{found}; {system}", facts=facts | {"system": system})


def stated_requirements() -> dict[str, list[Requirement]]:
    """The requirements in MegaSLM's metadata on this platform, by extra; without an extra, those of every installation.

    Raises PackageNotFoundError where MegaSLM was not installed, as in a bare checkout.
    """
    stated = metadata("megaslm")
    extras = [extra for extra in stated.get_all("Provides-Extra") or [] if extra != _OF_DEVELOPERS]
    found: dict[str, list[Requirement]] = {extra: [] for extra in (_ALWAYS, *extras)}
    for requirement in map(Requirement, stated.get_all("Requires-Dist") or []):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": _ALWAYS}):
            found[_ALWAYS].append(requirement)
            continue
        for extra in extras:
            if marker.evaluate({"extra": extra}):
                found[extra].append(requirement)
    return found


def libraries() -> Iterator[Check]:
    """The required libraries and the extras that are installed, and their versions."""
    try:
        stated = stated_requirements()
    except PackageNotFoundError:
        found = "MegaSLM is not installed as a package, so that the versions that it needs are not known"
        yield Check("libraries", "warning", found, "make install")
        return
    versions = {each.name: _installed(each.name) for group in stated.values() for each in group}
    yield from required(stated.pop(_ALWAYS), versions)
    yield from extras(stated, versions)


def required(needed: Sequence[Requirement], versions: Mapping[str, str | None]) -> Iterator[Check]:
    """Judges the libraries that every installation needs. `versions`: those installed, None for none."""
    others = [each for each in needed if not _fits(each, versions)]
    for each in others:
        yield Check(
            "libraries",
            "warning" if versions[each.name] else "problem",
            f"{each.name} {_told(versions[each.name])}; MegaSLM needs {each.name}{each.specifier}",
            "make install",
            {"library": each.name, "installed": versions[each.name], "needed": str(each.specifier)},
        )
    facts = {each.name: versions[each.name] for each in needed}
    found = f"{len(needed) - len(others)} of {len(needed)} required libraries are installed in a version that fits"
    yield Check("libraries", "ok", found, facts=facts)


def extras(groups: Mapping[str, Sequence[Requirement]], versions: Mapping[str, str | None]) -> Iterator[Check]:
    """Judges the libraries of each extra. One that is not installed is no fault."""
    told = []
    for extra, needed in groups.items():
        there = [each for each in needed if versions[each.name]]
        state = "installed" if len(there) == len(needed) else "in part" if there else "not installed"
        told.append(f"{extra} {state}")
        for each in there:
            if not _fits(each, versions):
                found = f"{each.name} {versions[each.name]} is installed; the extra {extra} needs {each.specifier}"
                yield Check("extras", "warning", found, f"make install EXTRAS={extra}")
    facts = {extra: {each.name: versions[each.name] for each in needed} for extra, needed in groups.items()}
    yield Check("extras", "ok", ", ".join(told), facts=facts)


def bytecode() -> Iterator[Check]:
    """Whether Python starts torch from its compiled bytecode."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return
    compiled = Path(cache_from_source(spec.origin))
    may_write = not sys.dont_write_bytecode and os.access(compiled.parent.parent, os.W_OK)
    yield from judge_bytecode(compiled.exists(), may_write, compiled.parents[2])


def judge_bytecode(is_there: bool, may_write: bool, packages: Path) -> Iterator[Check]:
    """Judges torch's bytecode. `packages`: the folder that torch is installed in."""
    facts = {"compiled": is_there, "may_write": may_write}
    if is_there or may_write:
        told = "torch is compiled" if is_there else "torch is compiled at its next import"
        yield Check("bytecode", "ok", told, facts=facts)
        return
    yield Check(
        "bytecode",
        "warning",
        "torch has no compiled bytecode and Python may not write it, so that every process of every rank compiles "
        "it anew: each start takes a minute longer",
        f"env -u PYTHONDONTWRITEBYTECODE {sys.executable} -m compileall -q {packages}",
        facts,
    )


def imports() -> Iterator[Check]:
    """Whether the large libraries can be imported, which no check that follows could do without."""
    began = time.monotonic()
    for module in _SLOW_IMPORTS:
        try:
            import_module(module)
        except Exception as error:  # A library of another platform, a missing shared object, a bug of a release: all.
            broken = BrokenLibrary(error)
            yield Check("imports", "problem", broken.finding, broken.remedy)
            return
    seconds = time.monotonic() - began
    yield Check("imports", "ok", f"torch, DeepSpeed and the others took {seconds:.1f} s", facts={"seconds": seconds})


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _told(installed: str | None) -> str:
    return "is not installed" if installed is None else f"{installed} is installed"


def _fits(requirement: Requirement, versions: Mapping[str, str | None]) -> bool:
    found = versions[requirement.name]
    return found is not None and requirement.specifier.contains(found, prereleases=True)
