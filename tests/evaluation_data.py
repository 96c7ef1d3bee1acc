"""Look-alikes of evaluation sets in the formats in which they are published: two items each."""

import csv
import json
from pathlib import Path
from typing import Any

# Of each task: its questions and right answers.
EXPECTED: dict[str, list[tuple[str, str]]] = {
    "gsm8k": [("Ann has 2 pens and buys 3. How many has she?", "5"), ("Bo has 7.", "1,007")],
    "gsm-hard": [("A has 1000000.5. How many?", "1000000.5"), ("B has 3. How many?", "-3.0")],
    "svamp": [("There are 4 birds. How many birds are there?", "4.0"), ("Two cats came How many?", "2.0")],
    "asdiv": [("Seven red apples. How many apples?", "9"), ("It costs $3. What is the ratio?", "1:3")],
    "mawps": [("Joan found 70 shells. How many?", "27.0"), ("Tom has 5 dimes.", "5.0")],
    "tabmwp": [
        ("Read the following table and answer a question:\nName | Age\nAl | 9\nHow old is Al?", "9"),
        (
            "Read the following table and answer a question:\nx | y\nIs it linear? Please select from the following "
            "options: yes, no",
            "no",
        ),
    ],
    "math": [("Compute $1+1$.", "2"), ("Compute $\\frac12+\\frac13$.", "\\frac{5}{6}")],
    "math-500": [("Compute $2^3$.", "8"), ("Find the interval.", "\\left[0,1\\right)")],
    "mathqa": [
        ("what is 2 + 2 ?\nAnswer Choices: a ) 3 , b ) 4 , c ) 5 , d ) 6 , e ) 7", "b"),
        ("what is 9 ?\nAnswer Choices: a ) 9 , b ) 4 , c ) 5 , d ) 6 , e ) 7", "a"),
    ],
    "mmlu-stem": [
        ("Which, if any?\nAnswer Choices: (A) 0 (B) 1, or 2 (C) 3 (D) 4", "B"),
        ("A word\nAnswer Choices: (A) a (B) b (C) c (D) d", "D"),
    ],
    "sat-math": [
        ("If $x=1$, what is $2x$?\nAnswer Choices: (A)1, (B)2, (C)3, (D)4", "B"),
        ("Which?\nAnswer Choices: (A)x, (B)y, (C)z, (D)w", "A"),
    ],
    "ocw": [("A star has $L=10^{3}$. What is its mass?", "6.2"), ("Find $f$.", "\\sqrt{2}")],
}


def write_evaluation_data(folder: Path) -> Path:
    """Writes the files of every task in `configs/eval/tasks`."""

    def write(name: str, content: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    def lines(name: str, *records: dict[str, Any]) -> None:
        write(name, "".join(json.dumps(record) + "\n" for record in records))

    lines(
        "gsm8k/test.jsonl",
        {"question": "Ann has 2 pens and buys 3. How many has she?", "answer": "She has <<2+3=5>>5.\n#### 5"},
        {"question": "Bo has 7.", "answer": "With 1,000 more it is 1,007.\n#### 1,007"},
    )
    lines(
        "gsm-hard/gsmhardv2.jsonl",
        {"input": "A has 1000000.5. How many?", "code": "def solution():\n    return 1", "target": 1000000.5},
        {"input": "B has 3. How many?", "code": "", "target": -3.0},
    )
    problem = {"ID": "chal-1", "Equation": "( 4.0 )", "Type": "Addition"}
    svamp = [
        {**problem, "Body": "There are 4 birds.", "Question": "How many birds are there?", "Answer": 4.0},
        {**problem, "Body": "Two cats came", "Question": "How many?", "Answer": 2.0},
    ]
    write("svamp/SVAMP.json", json.dumps(svamp))
    write(
        "asdiv/ASDiv.xml",
        """<?xml version="1.0" encoding="UTF-8"?>
<Machine-Reading-Corpus-File><ProblemSet>
<Problem ID="nluds-0001" Grade="1" Source="http://www.example.org">
  <Body>Seven red apples.</Body><Question>How many apples?</Question><Solution-Type>Addition</Solution-Type>
  <Answer>9 (apples)</Answer><Formula>7+2=9</Formula></Problem>
<Problem ID="nluds-0002" Grade="1" Source="http://www.example.org">
  <Body>Both.</Body><Question>Which two?</Question><Solution-Type>Algebra</Solution-Type>
  <Answer>3 (red); 4 (blue)</Answer><Formula>x</Formula></Problem>
<Problem ID="nluds-0003" Grade="6" Source="http://www.example.org">
  <Body>It costs $3.</Body><Question>What is the ratio?</Question><Solution-Type>Ratio</Solution-Type>
  <Answer>1:3</Answer><Formula>1:3=1:3</Formula></Problem>
</ProblemSet></Machine-Reading-Corpus-File>
""",
    )
    shells = {"iIndex": 1, "sQuestion": "Joan found 70 shells. How many?", "lEquations": ["X=70-43"]}
    dimes = {"iIndex": 2, "sQuestion": "Tom has 5 dimes.", "lEquations": ["X=5"], "lSolutions": [5.0]}
    write("mawps/AddSub.json", json.dumps([{**shells, "lSolutions": [27.0]}]))
    write("mawps/MultiArith.json", json.dumps([dimes]))
    for name in ("SingleEq", "SingleOp"):
        write(f"mawps/{name}.json", json.dumps([dimes]))
    table = {"table_title": None, "unit": None, "ques_type": "free_text", "ans_type": "integer_number", "grade": 3}
    tabmwp = {
        "12": {**table, "table": "Name | Age\nAl | 9", "question": "How old is Al?", "choices": None, "answer": "9"},
        "7": {**table, "table": "x | y", "question": "Is it linear?", "choices": ["yes", "no"], "answer": "no"},
    }
    write("tabmwp/problems_test1k.json", json.dumps({key: {**each, "solution": "So."} for key, each in tabmwp.items()}))
    for number, (question, solution) in enumerate(
        [("Compute $1+1$.", "It is $\\boxed{2}$."), ("Compute $\\frac12+\\frac13$.", "$\\boxed{\\frac{5}{6}}$")]
    ):
        record = {"problem": question, "level": "Level 1", "type": "Algebra", "solution": solution}
        write(f"math/test/algebra/{number}.json", json.dumps(record))
    of_500 = {"solution": "So.", "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}
    lines(
        "math-500/test.jsonl",
        {"problem": "Compute $2^3$.", "answer": "8", **of_500},
        {"problem": "Find the interval.", "answer": "\\left[0,1\\right)", **of_500},
    )
    mathqa = [
        {"Problem": question, "Rationale": "so", "options": options, "correct": correct, "category": "general"}
        for question, options, correct in (
            ("what is 2 + 2 ?", "a ) 3 , b ) 4 , c ) 5 , d ) 6 , e ) 7", "b"),
            ("what is 9 ?", "a ) 9 , b ) 4 , c ) 5 , d ) 6 , e ) 7", "a"),
        )
    ]
    write("mathqa/test.json", json.dumps(mathqa))
    _write_mmlu(folder)
    lines(
        "sat-math/sat-math.jsonl",
        {
            "passage": None,
            "question": "If $x=1$, what is $2x$?",
            "options": ["(A)1", "(B)2", "(C)3", "(D)4"],
            "label": "B",
            "other": {"solution": "Choice B."},
        },
        {
            "passage": None,
            "question": "Which?",
            "options": ["(A)x", "(B)y", "(C)z", "(D)w"],
            "label": "A",
            "other": {"solution": "Choice A."},
        },
    )
    write(
        "ocw/ocw_courses_problems.text",
        "\\textbf{Problem:}\nA star has $L=10^{3}$. What is its mass?\n\\textbf{Solution:}\nIt is \\boxed{6.2}.\n"
        "Final answer: 6.2\n\n\\textbf{Problem:} Find $f$.\n\\textbf{Solution:} $\\boxed{\\sqrt{2}}$\n",
    )
    return folder


def _write_mmlu(folder: Path) -> None:
    from megaslm.tasks.task_files import load_tasks

    for number, name in enumerate(load_tasks(["mmlu-stem"])["mmlu-stem"].files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if number == 0:
                writer.writerow(["Which, if any?", "0", "1, or 2", "3", "4", "B"])
            writer.writerow(["A word", "a", "b", "c", "d", "D"])
