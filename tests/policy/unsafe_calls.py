"""Ways in which a file from elsewhere, or a value that was passed in, could run code; read off the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

RUNS_PROGRAMS = "megaslm/sandbox/interpreter.py"
"""The one file that runs text as code: it is run in a sandbox."""
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
"""Modules that make objects of bytes, and run what these say."""
_AS_CODE = "it runs text as code"
_ANY_CLASS = "it makes objects of any class: subclass yaml.SafeLoader"
_SHELL = "it passes text to a shell: give subprocess a list"
_DEEPSPEEDS = "it unpickles what DeepSpeed has saved"
FORBIDDEN = {
    **dict.fromkeys(("eval", "exec", "compile"), _AS_CODE),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), _SHELL),
    **{f"yaml.{name}": _ANY_CLASS for name in ("load", "load_all", "full_load", "full_load_all")},
    **{f"yaml.{name}": _ANY_CLASS for name in ("unsafe_load", "unsafe_load_all", "Loader", "FullLoader")},
    **{f"yaml.{name}": _ANY_CLASS for name in ("UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader")},
    "deepspeed.utils.zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint": _DEEPSPEEDS,
}
"""Names by their full path, and what is wrong with them."""
FORBIDDEN_METHODS = {"load_checkpoint": _DEEPSPEEDS}
"""Likewise, whatever they are called on."""
FALSE_ALONE = ("allow_pickle", "trust_remote_code", "shell")
"""Arguments that may be passed as False and as nothing else."""


def unsafe_calls(root: Path) -> list[str]:
    """Every one under `root`/megaslm as `file:line: what, and why not`."""
    return [
        f"{path.relative_to(root).as_posix()}:{line}: {finding}"
        for path in sorted((root / "megaslm").rglob("*.py"))
        for line, finding in _found_in(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
        if path != root / RUNS_PROGRAMS or not finding.endswith(_AS_CODE)
    ]


def _found_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    imported = _imported(tree)
    for path in set(imported.values()):
        if path.split(".")[0] in PICKLES:
            yield 1, f"imports {path}: it unpickles"
    for node in ast.walk(tree):
        # A field that is named like a function is defined here, and runs nothing.
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = _full_name(node, imported)
            if name in FORBIDDEN:
                yield node.lineno, f"uses {name}: {FORBIDDEN[name]}"
        elif isinstance(node, ast.Call):
            for finding in _wrong_with(node, _full_name(node.func, imported)):
                yield node.lineno, finding


def _wrong_with(call: ast.Call, name: str) -> Iterator[str]:
    passed = {argument.arg: _constant(argument.value) for argument in call.keywords}
    for argument in FALSE_ALONE:
        if argument in passed and passed[argument] is not False:
            yield f"passes {argument}: only False is allowed"
    if name == "torch.load" and passed.get("weights_only") is not True:
        yield "calls torch.load without weights_only=True: it unpickles"
    if name.startswith("transformers.Auto") and "trust_remote_code" not in passed:
        yield f"calls {name} without trust_remote_code=False: it asks whether to run the folder's own code"
    if isinstance(call.func, ast.Attribute) and call.func.attr in FORBIDDEN_METHODS:
        yield f"calls {call.func.attr}: {FORBIDDEN_METHODS[call.func.attr]}"


def _imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for, in full; imports inside functions count too."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` brings in the name a.
                names[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _full_name(node: ast.expr, imported: dict[str, str]) -> str:
    """`t.load` as torch.load where torch was imported as t; empty for what is no name."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = _full_name(node.value, imported)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def _constant(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else node
