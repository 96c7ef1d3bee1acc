"""Word problems of our own in GSM8K's form: twelve stories, told again with other names and numbers."""

import random
from typing import NamedTuple

from harness.gsm8k_programs import Problem

_NAMES = ("Ada", "Ben", "Carla", "Deniz", "Emeka", "Freya", "Goran", "Hana", "Ines", "Jonas")


class _Story(NamedTuple):
    """The answer is (a `first` b) `second` c."""

    text: str
    first: str
    second: str


_STORIES = (
    _Story("{name} fills {a} boxes with {b} candles each and gives {c} candles away. How many are left?", "*", "-"),
    _Story("{name} picks {a} plums and {b} pears. Each fruit weighs {c} grams. What do they weigh together?", "+", "*"),
    _Story("A bus of {name} makes {a} trips with {b} people, then one trip with {c}. How many people ride?", "*", "+"),
    _Story("{name} has {a} stamps, buys {b} and finds {c}. How many stamps does {name} have now?", "+", "+"),
    _Story("A shelf holds {a} books in each of {b} rows. {name} owns {c} such shelves. How many books?", "*", "*"),
    _Story("{name} reads {a} pages on Monday and {b} on Tuesday, {c} of them twice. How many new pages?", "+", "-"),
    _Story("One ticket costs {a} dollars. {name} buys {b} and pays a fee of {c} dollars. What is the price?", "*", "+"),
    _Story("{name} bakes {a} loaves in the morning and {b} at night, for {c} days. How many loaves?", "+", "*"),
    _Story("{name} plants {a} rows of {b} tulips. Frost kills {c}. How many tulips bloom?", "*", "-"),
    _Story("A tank holds {a} litres. {name} adds {b} litres and uses {c}. How many litres are in it?", "+", "-"),
    _Story("{name} walks {a} minutes, rests {b} minutes and walks {c} more. How long does it take?", "+", "+"),
    _Story("{name} packs {a} eggs into each of {b} cartons, and loads {c} such crates. How many eggs?", "*", "*"),
)


def made_up_problems(count: int, seed: int) -> list[Problem]:
    """So many problems; the same ones for the same seed."""
    draw = random.Random(seed)
    return [_told(draw.choice(_STORIES), draw) for _ in range(count)]


def _told(story: _Story, draw: random.Random) -> Problem:
    a, b, c = draw.randint(5, 30), draw.randint(5, 30), draw.randint(2, 9)
    before, first = _calculated(a, story.first, b)
    after, second = _calculated(before, story.second, c)
    question = story.text.format(name=draw.choice(_NAMES), a=a, b=b, c=c)
    return Problem(question, f"First {first}.\nThen {second}.\n#### {after}")


def _calculated(first: int, sign: str, second: int) -> tuple[int, str]:
    value = {"+": first + second, "-": first - second, "*": first * second}[sign]
    return value, f"{first} {sign} {second} = <<{first}{sign}{second}={value}>>{value}"
