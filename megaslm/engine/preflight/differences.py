"""In what ranks differ that ought to be alike."""

from collections.abc import Iterator, Sequence

from megaslm.engine.preflight.clocks import clock_trait
from megaslm.engine.preflight.facts import LIBRARIES, RankFacts
from megaslm.engine.preflight.findings import Finding, Trait, disagreements

_MOST_SETTINGS_NAMED = 8
_NOT_SET = "not set"


def differences(all_facts: Sequence[RankFacts]) -> list[Finding]:
    """What the facts of all ranks, in rank order, do not have in common."""
    ranks = [facts.rank for facts in all_facts]
    found = _first_few(finding for trait in _settings(all_facts) for finding in disagreements(trait, ranks))
    found += [finding for trait in _others(all_facts) for finding in disagreements(trait, ranks)]
    return found


def _settings(all_facts: Sequence[RankFacts]) -> Iterator[Trait]:
    for name in _all_names(facts.settings for facts in all_facts):
        values = [facts.settings.get(name, _NOT_SET) for facts in all_facts]
        yield Trait(name, values, "start all ranks with one configuration")


def _others(all_facts: Sequence[RankFacts]) -> Iterator[Trait]:
    for name in _all_names(facts.files for facts in all_facts):
        values = [facts.files.get(name, _NOT_SET) for facts in all_facts]
        yield Trait(name, values, "give all hosts the same files, or a file system that they share")
    for library in LIBRARIES:
        values = [facts.versions[library] for facts in all_facts]
        yield Trait(f"the version of {library}", values, "install one on all hosts")
    yield Trait(
        "the version of Python", [facts.python for facts in all_facts], "use one on all hosts", must_agree=False
    )
    counts = [str(len(facts.gpus)) for facts in all_facts]
    yield Trait("the number of GPUs", counts, "look at the host that has fewer, if that is not meant", must_agree=False)
    models = [", ".join(sorted(set(facts.gpus))) or "none" for facts in all_facts]
    # A host that lacks GPUs is named once.
    if len(set(counts)) == 1:
        yield Trait("the model of GPU", models, "all ranks go at the pace of the slowest one", must_agree=False)
        drivers = [facts.driver for facts in all_facts]
        yield Trait("the GPUs' driver", drivers, "install one version on all hosts", must_agree=False)
    yield clock_trait([facts.clock for facts in all_facts])


def _first_few(findings: Iterator[Finding]) -> list[Finding]:
    """The first ones, and how many more there are: two runs may have nothing in common."""
    found = list(findings)
    left_out = len(found) - _MOST_SETTINGS_NAMED
    more = [Finding(f"and {left_out} more differences between settings")] if left_out > 0 else []
    return found[:_MOST_SETTINGS_NAMED] + more


def _all_names(groups: Iterator[dict[str, str]]) -> list[str]:
    """In the order in which they come first."""
    return list(dict.fromkeys(name for group in groups for name in group))
