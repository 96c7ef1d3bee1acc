"""Whether two answers are equal, by math-verify: stricter than the rules of published results.

Some answers never come back from it, so `megaslm.grading.judge` calls this in a process that it can kill.
"""

import re

from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

_TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())
_PERCENT = re.compile(r"\s*\\?%\s*$")
_NUMBER_AND_WORDS = re.compile(r"([-+]?\$?[\d.,]*\d)(?:\s+[A-Za-z ]+)?\.?")


def strictly_equal(prediction: str, reference: str) -> bool:
    """Whether a predicted answer equals the reference, both as they were extracted, not normalised."""
    # The library takes 50% for 50, and 50.0\% for neither.
    if _PERCENT.search(prediction) or _PERCENT.search(reference):
        prediction, reference = _PERCENT.sub("", prediction), _PERCENT.sub("", reference)
    prediction, reference = (_without_words(answer.strip()) for answer in (prediction, reference))
    if prediction.lower() == reference.lower() and (prediction == reference or prediction.isalpha()):
        return bool(prediction)
    parsed = [
        # Without its own time limits, which raise in the main thread only.
        parse(f"\\boxed{{{answer}}}", extraction_config=_TARGETS, parsing_timeout=None)
        for answer in (reference, prediction)
    ]
    return all(parsed) and bool(verify(*parsed, timeout_seconds=None))


def _without_words(answer: str) -> str:
    """The number of "18 dollars a day.", whose words the library takes for symbols; other answers as they are."""
    found = _NUMBER_AND_WORDS.fullmatch(answer)
    return found[1] if found else answer
