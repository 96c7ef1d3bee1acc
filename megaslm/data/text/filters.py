"""The conditions that a recipe can name: plain functions of a text."""

import re
from collections.abc import Callable, Mapping, Sequence

from megaslm.config.recipe import Filter


def length(text: str, settings: Filter) -> bool:
    """Whether a text has as many characters as it should."""
    return settings.min_characters <= len(text) and (
        settings.max_characters is None or len(text) <= settings.max_characters
    )


def regex(text: str, settings: Filter) -> bool:
    """Whether a pattern is found in a text that has to have it, or is not in one that must not."""
    if settings.keep is not None:
        return re.search(settings.keep, text) is not None
    return re.search(settings.drop or "", text) is None


FILTERS: Mapping[str, Callable[[str, Filter], bool]] = {"length": length, "regex": regex}
"""By the name that recipes use."""


def first_unmet(text: str, filters: Sequence[Filter]) -> int | None:
    """The place of the first condition that a text does not meet; null where it meets all."""
    unmet = (place for place, settings in enumerate(filters) if not FILTERS[settings.name](text, settings))
    return next(unmet, None)
