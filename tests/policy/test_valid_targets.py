"""One place says which targets are valid."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWNER = "megaslm/slm/valid_targets.py"
OF_TEXT = "megaslm/inspect/row_text.py"
"""Looks for the last token of a row that is not padding, to know what to print."""


def rules_of_validity(root: Path) -> Iterator[str]:
    """Every comparison that finds the tokens that are not EOS, outside of the owner of the rule, as `file:line`."""
    for path in sorted((root / "megaslm").rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name not in (OWNER, OF_TEXT):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if _finds_others(node):
                    yield f"{name}:{node.lineno}"


def _finds_others(node: ast.AST) -> bool:
    match node:
        case ast.Compare(ops=[ast.NotEq()]):
            return _is_with_eos(node)
        case ast.UnaryOp(op=ast.Invert()):
            return any(map(_is_with_eos, ast.walk(node.operand)))
        case ast.Call(func=ast.Attribute(attr="ne" | "not_equal" | "ne_" | "not_equal_")):
            return any(map(_is_eos, node.args))
        case ast.Call(func=ast.Attribute(attr="logical_not" | "bitwise_not")):
            return any(map(_is_with_eos, ast.walk(node)))
    return False


def _is_with_eos(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and any(map(_is_eos, (node.left, *node.comparators)))


def _is_eos(node: ast.AST) -> bool:
    name = getattr(node, "id", "") or getattr(node, "attr", "")
    return name.removeprefix("_") in ("eos_id", "eos", "eos_token_id")


def test_the_rule_stands_at_one_place() -> None:
    assert list(rules_of_validity(ROOT)) == []
    assert _has_rule(ROOT / OWNER)
    assert _has_rule(ROOT / OF_TEXT)


def _has_rule(path: Path) -> bool:
    return any(map(_finds_others, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))


@pytest.mark.parametrize(
    "source",
    [
        "valid = tokens[:, :-1] != eos_id",
        "valid = self._eos_id != inputs",
        "valid = ~(tokens[..., :-1] == manifest.eos_id)",
        "valid = torch.logical_not(tokens == eos_id)",
        "valid = tokens[:, :-1].ne(eos_id)",
        "valid = np.not_equal(tokens, eos_id)",
    ],
)
def test_a_second_rule_is_caught(tmp_path: Path, source: str) -> None:
    path = tmp_path / "megaslm" / "scoring" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"def f():\n    {source}\n    ends = tokens[:, -1] == eos_id\n", encoding="utf-8")
    assert list(rules_of_validity(tmp_path)) == ["megaslm/scoring/a.py:2"]
