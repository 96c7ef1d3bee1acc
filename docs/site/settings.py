"""The reference of settings: every key of a kind of file, from the schema that reads it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.site.blocks import cell
from megaslm.config.cluster import HostfileCluster, KubernetesCluster, LocalCluster, SlurmCluster, TorchrunCluster
from megaslm.config.explain import one_line
from megaslm.config.problems import SchemaNode, expected, show
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.config.section import Section
from megaslm.config.task import Suite, Task


@dataclass(frozen=True)
class Reference:
    """One page of the reference."""

    title: str
    lead: str
    """What file this is, and which commands read it."""
    sections: Mapping[str, type[Section]]
    """Heading to the schema of the file; an empty heading where the file has one schema."""


REFERENCES = {
    "reference/run.md": Reference(
        "Settings of a run",
        "One YAML file describes a run. `megaslm train`, `plan`, `sweep` and `launch` read it. "
        "`megaslm config explain RUN.yaml` prints every setting with its value and the line that set it.",
        {"": RunConfig},
    ),
    "reference/recipe.md": Reference(
        "Settings of a recipe",
        "A recipe says what a corpus is made of. `megaslm prepare` reads it. "
        "`megaslm config explain --recipe RECIPE.yaml` prints every setting with its value and the line that set it. "
        "[Recipes of text](../corpus-recipes.md) has an example with comments.",
        {"": Recipe},
    ),
    "reference/cluster.md": Reference(
        "Settings of a cluster",
        "A cluster's file says where and how a job is started. `megaslm launch` and `sweep` read it with `--cluster`. "
        "`kind` decides which other settings there are. The folder `launcher/` of the repository has a file of each "
        "kind.",
        {
            "`kind: local`": LocalCluster,
            "`kind: hostfile`": HostfileCluster,
            "`kind: torchrun`": TorchrunCluster,
            "`kind: slurm`": SlurmCluster,
            "`kind: kubernetes`": KubernetesCluster,
        },
    ),
    "reference/task.md": Reference(
        "Settings of tasks and suites",
        "A task is a set of problems with right answers. A suite is a list of tasks. `megaslm evaluate` and `sample` "
        "read these files. The folders `configs/eval` and `configs/eval/tasks` of the repository have examples.",
        {"A task": Task, "A suite": Suite},
    ),
}
"""Page of the site to what it describes."""


def reference_page(reference: Reference) -> str:
    """The page as Markdown: one table per section of settings."""
    lines = [f"# {reference.title}", "", reference.lead, ""]
    for heading, schema in reference.sections.items():
        if heading:
            lines += [f"## {heading}", ""]
        lines += _section(schema, "", level=3 if heading else 2)
    return "\n".join(lines)


def _section(schema: type[BaseModel], prefix: str, level: int) -> Iterator[str]:
    """The table of a section, then those of the sections in it. `prefix` is its dotted key, with a dot at its end."""
    if prefix:
        yield from (f"{'#' * level} `{prefix[:-1]}`", "")
        yield from (one_line(schema.__doc__ or ""), "")
    yield from ("| setting | value | default | meaning |", "|---|---|---|---|")
    for name, field in schema.model_fields.items():
        yield f"| {' | '.join(_cells(prefix + name, field))} |"
    yield ""
    for name, field in schema.model_fields.items():
        for key, inner in _inner_sections(prefix + name, SchemaNode(field.annotation)):
            yield from _section(inner, f"{key}.", min(level + (1 if prefix else 0), 4))


def _cells(key: str, field: FieldInfo) -> Iterator[str]:
    yield f"`{key}`"
    node = SchemaNode(field.annotation, tuple(field.metadata))
    inner = [f"[settings below](#{_anchor(inner)})" for inner, _ in _inner_sections(key, node)]
    yield " or ".join(dict.fromkeys(inner)) or cell(expected(node).removeprefix("must be "))
    yield _default(field)
    yield cell(field.description or "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        raise ValueError(f"{field} has no default that can be shown")
    return "" if isinstance(value, BaseModel) else f"`{show(value)}`"


def _inner_sections(key: str, node: SchemaNode) -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections that may stand at a key: itself, each entry of a list, each named entry."""
    for option in node.options():
        annotation: Any = option.annotation
        kind, arguments = get_origin(annotation), get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield key, annotation
        elif kind in (tuple, list):
            yield from _inner_sections(f"{key}.0", SchemaNode(arguments[0]))
        elif kind in (dict, Mapping):
            yield from _inner_sections(f"{key}.NAME", SchemaNode(arguments[1]))


def _anchor(key: str) -> str:
    """The anchor that Python-Markdown gives the heading of a section."""
    return re.sub(r"[^\w-]", "", key).lower()
