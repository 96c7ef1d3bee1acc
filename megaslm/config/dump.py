"""A configuration as YAML that loads back to an equal one."""

from decimal import Decimal

import yaml
from pydantic import BaseModel

from megaslm.config.source import FLOAT_PATTERN, FLOAT_STARTS


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes wherever a YAML 1.1 reader or MegaSLM's own would take it for something else."""


def dump(value: BaseModel) -> str:
    """Every setting of `value` as YAML, defaults included."""
    return to_yaml(value.model_dump(mode="python"))


def to_yaml(value: object, *, one_line: bool = False) -> str:
    """Plain values as YAML, in their own order."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=one_line,
        width=10**6 if one_line else 120,
    )


def _represent_decimal(dumper: yaml.SafeDumper, value: Decimal) -> yaml.Node:
    """A plain number where a reader's float has the same digits, else text, which keeps them all."""
    if Decimal(str(float(value))) == value:
        return dumper.represent_float(float(value))
    return dumper.represent_str(str(value))


def _represent_tuple(dumper: yaml.SafeDumper, value: tuple[object, ...]) -> yaml.Node:
    return dumper.represent_list(value)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Rare line ends survive in double quotes only."""
    style = '"' if any(mark in value for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Decimal, _represent_decimal)
_Dumper.add_representer(tuple, _represent_tuple)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_PATTERN, FLOAT_STARTS)
