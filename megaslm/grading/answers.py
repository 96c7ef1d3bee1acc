"""The answer in a model's output, and its normal form under the rules by which published results were graded.

`tora`: the rules of ToRA's evaluation (github.com/microsoft/ToRA, 2023). `rho`: those of the harness that Rho-1 used
(github.com/ZubinGou/math-evaluation-harness, 2024). Both are written here from their behaviour.
"""

import re
from typing import Literal

Rules = Literal["tora", "rho"]

_NUMBER = re.compile(r"-?\d*\.?\d+")

# Words that follow a number in answers of MathQA and other sets. The harness removes them as whole words.
_UNITS = re.findall(
    r"\w+",
    """
    a ab acre am apple are b bc by c cc cm coin cu cube cubic d day decrease deg degree dm east excess feet ft g
    gain gal gallon gm h hectare hour hr inch inches increase kg km kmh kmph l lb less liter litre loss lt m man
    mark men meter metre mile min minute minw mm monkey month more mp mph mt mtr noon number o ohm per percent pie
    pm prime profit pure ratio rd rise rounds rs rupee s sec second soldier sq square st t th tile toy unit way
    west woman women yard year yr Surface
    """,
)
_UNIT_PHRASES = [
    *("m sqaure", "m east", "sq m", "q .", "profit of rs", "p . m", "a . m", "sq . m", "cu . m", "cu cm", "sq inch"),
    *("cm 2", "rs .", "s .", "pi sq m", "no change", "π r 2", "∏ cm ³", "° f", "v â € ™"),
    *(f"{letter} ." for letter in "abcdefgh"),
]
_UNIT = re.compile(
    r"(^|\W)(?:"
    + "|".join(re.escape(unit) + "s?" for unit in sorted([*_UNITS, *_UNIT_PHRASES], key=len, reverse=True))
    + r")($|\W)"
)

_WORDS = {
    word: number
    for numbers, words in (
        (
            range(20),
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
            " sixteen seventeen eighteen nineteen",
        ),
        (range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety"),
    )
    for number, word in zip(numbers, re.findall(r"\w+", words), strict=True)
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def final_answer(text: str, rules: Rules) -> str:
    """The answer that an output ends with, not normalised; empty where there is none.

    It is the last `\\boxed{}`, else the words after "he answer is", else the last number. `tora` looks into the last
    block of a program's output before it takes the last number.
    """
    if "boxed" in text:
        answer = _after_boxed(text.rpartition("boxed")[2])
    elif "he answer is" in text:
        answer = text.rpartition("he answer is")[2].strip()
    elif rules == "tora" and program_output(text):
        answer = program_output(text)
    else:
        numbers = _NUMBER.findall(text.replace(",", ""))
        answer = numbers[-1] if numbers else ""
    # An answer over several lines, such as a matrix: the later rules join them.
    answer = answer.split("\n")[0] if rules == "tora" else re.sub(r"\n\s*", "", answer)
    return answer.removeprefix(":").removesuffix(".").removesuffix("/")


def program_output(text: str) -> str:
    """The content of the last block of a program's output; empty where there is none."""
    _, fence, rest = text.rpartition("```output")
    return rest.split("```")[0].strip() if fence else ""


def _after_boxed(text: str) -> str:
    """The braces' content at the start of a text; up to a dollar sign where there are no braces."""
    if not text.startswith("{"):
        return text.split("$")[0].strip()
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:place]
    return text[1:]


def normalised(answer: str, rules: Rules) -> str:
    """The normal form in which two answers are compared."""
    text = answer.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    if rules == "tora":
        text = text.replace("\\ ", "").replace("\\\\", "\\").replace("\\\\", "\\")
    else:
        text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text)
        text = text.replace("\\end{array}", "\\end{pmatrix}").replace("bmatrix", "pmatrix")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    if rules == "rho":
        text = text.replace("\\{", "{").replace("\\}", "}")
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text
    if rules == "rho":
        text = _without_units(text)
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("$", "")
    if rules == "tora":
        text = text.replace("\\text", "").replace("x\\in", "")
    else:
        text = re.sub(r"\\text\{(.*?)\}", r"\1", _number_of_words(text))
        text = re.sub(r"[xyz](?:=|\\in|\\to)", "", text)
        text = text.replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}")
    text = text.replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    if rules == "tora":
        text = text.replace("\\cdot", "")
    text = text.replace("infinity", "\\infty")
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = re.sub(r"\\mbox{.*?}", "", text.replace("and", "").replace("\\mathbf", ""))
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    zeros = "0+" if rules == "tora" else "0*"
    text = re.sub(rf"(\d+)\.{zeros}(\D|$)", r"\1\2", text)
    if text.startswith("."):
        text = f"0{text}"
    name, equals, value = text.partition("=")
    if equals and len(name) <= 2 and "=" not in value:
        text = value
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    return _braced_quotient(_braced_fractions(text))


def _without_units(text: str) -> str:
    """Without words of units, unless nothing else would be left."""
    while (shorter := _UNIT.sub(r"\1\2", text)) not in ("", text):
        text = shorter
    return text


def _number_of_words(text: str) -> str:
    """The number that English words spell, in digits, whatever other words stand beside them; else the text itself."""
    words = [
        word for word in re.split(r"[\s-]+", text.lower()) if word in _WORDS or word in _SCALES or word == "hundred"
    ]
    if not words:
        return text
    total = below_thousand = 0
    for word in words:
        if word in _WORDS:
            below_thousand += _WORDS[word]
        elif word == "hundred":
            below_thousand = max(1, below_thousand) * 100
        else:
            total += max(1, below_thousand) * _SCALES[word]
            below_thousand = 0
    return str(total + below_thousand)


def _braced_fractions(text: str) -> str:
    """Arguments of `\\frac` without braces in braces: `\\frac12` and `\\frac1{72}`."""
    first, *rest = text.split("\\frac")
    parts = [first]
    for part in rest:
        if part.startswith("{"):
            parts.append(part)
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            parts.append(f"{{{part[0]}}}{part[1:]}")
        else:
            parts.append(f"{{{part[0]}}}{{{part[1]}}}{part[2:]}")
    return "\\frac".join(parts)


def _braced_quotient(text: str) -> str:
    """`a/b` of two integers or roots as a fraction."""
    if text.count("/") != 1:
        return text
    above, below = (part if "sqrt" in part else _canonical_integer(part) for part in text.split("/"))
    return text if above is None or below is None else f"\\frac{{{above}}}{{{below}}}"


def _canonical_integer(text: str) -> str | None:
    """The text where it is an integer without leading zeros or a plus sign, else None."""
    return text if re.fullmatch(r"0|-?[1-9]\d*", text) else None
