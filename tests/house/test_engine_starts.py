"""How many engines `make test` starts: each takes most of a minute, so a new start is a decision and not an accident.

A start is a place that runs `sparktier up`, SGLang's engine, or programs that step ranks by themselves. Tests share
deployments instead, see tests/end_to_end/conftest.py.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
# What starts an engine when it is called; `probed` and `paced` start one program for each rank.
STARTERS = {"deployed", "Deployment", "sglang.Engine", "probed", "paced"}
# Tools that no test runs, and what the starters are made of.
ELSEWHERE = {"bench", "support", "house"}
# Places by file, those of long proofs left out.
STARTS = {
    "drafter/demo/test_demo_draft.py": 1,
    "end_to_end/conftest.py": 3,
    "end_to_end/test_attention_groups.py": 1,
    "end_to_end/test_controller.py": 1,
    "end_to_end/test_draft_kv.py": 2,
    "end_to_end/test_hostile_surroundings.py": 1,
    "end_to_end/test_pacing.py": 2,
    "end_to_end/test_ratio_distribution.py": 1,
    "end_to_end/test_retraction.py": 1,
    "end_to_end/test_stopping.py": 2,
    "end_to_end/test_two_nodes.py": 1,
    "serving/demo_model/test_sglang_model.py": 1,
}


def starts(source: str) -> int:
    """Return how many calls of STARTERS a file has outside of long proofs."""
    tree = ast.parse(source)
    marks = [node.value for node in tree.body if isinstance(node, ast.Assign) and _name(node) == "pytestmark"]
    return 0 if any(map(_proves, marks)) else sum(map(_calls, _outside_proofs(tree)))


def _name(assignment: ast.Assign) -> str:
    return ast.unparse(assignment.targets[0])


def _outside_proofs(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
        # A mark inside parametrize is that of one case.
        if not any(_proves(each) for each in decorators if not isinstance(each, ast.Call)):
            yield node


def _proves(marks: ast.expr) -> bool:
    return "pytest.mark.prove" in ast.unparse(marks)


def _calls(statement: ast.stmt) -> int:
    return sum(ast.unparse(node.func) in STARTERS for node in ast.walk(statement) if isinstance(node, ast.Call))


def test_no_start_is_added_unseen() -> None:
    files = [file for file in TESTS.rglob("*.py") if file.relative_to(TESTS).parts[0] not in ELSEWHERE]
    found = {file.relative_to(TESTS).as_posix(): starts(file.read_text()) for file in files}
    assert {file: count for file, count in found.items() if count} == STARTS


def test_starts_are_counted_where_they_are() -> None:
    proof = "@pytest.mark.prove\ndef test_a():\n    Deployment(2)\n"
    source = f"def made():\n    with deployed(1): ...\n{proof}"
    assert starts(source) == 1
    assert starts(f"pytestmark = [pytest.mark.engine, pytest.mark.prove]\n{source}") == 0
    cases = '@pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.prove)])\n'
    assert starts(proof.replace("@pytest.mark.prove\n", cases)) == 1
