"""Makes a prompt set without a download: from Python's standard library, arithmetic, and everyday tasks.

The same seed and Python version give the same prompts.
"""

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sparktier.drafter.data.prompts import Prompt, distinct

# Lookup tables, generated files and tests: little of their text is code to learn from.
SKIPPED_PARTS = frozenset(
    {"encodings", "pydoc_data", "test", "tests", "idle_test", "site-packages", "lib2to3", "entities.py"}
)
FUNCTION_LINES = range(4, 41)
DOCSTRING_CHARS = range(30, 600)

NAMES = (
    "Ana",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Leo",
    "Mia",
    "Noah",
)
THINGS = (
    "apples",
    "books",
    "marbles",
    "stickers",
    "cookies",
    "pencils",
    "coins",
    "shells",
    "stamps",
    "tickets",
    "cards",
)
PLACES = ("market", "shop", "school", "library", "farm", "fair", "bakery", "museum")
TOPICS = (
    "a rainy day", "photosynthesis", "the water cycle", "gravity", "a lost dog", "the first day at school", "volcanoes",
    "healthy food", "saving money", "learning the piano", "the Roman Empire", "electric cars", "bees", "the Moon",
    "a trip to the mountains", "climate change", "teamwork", "the printing press", "sleep", "chess", "public libraries",
    "coral reefs", "the stock market", "vaccines", "recycling", "a haunted house", "the Olympic Games", "coffee",
    "remote work", "time management", "earthquakes", "the human heart", "black holes", "gardening", "a surprise party",
    "bicycles", "the Silk Road", "dinosaurs", "rainbows", "cooking pasta", "job interviews", "friendship", "robots",
    "the French Revolution", "whales", "magnets", "a talking cat", "the internet", "marathon running", "bread",
)  # fmt: skip
TASKS = (
    "Write a short story about {}.",
    "Explain {} to a ten-year-old child.",
    "List five interesting facts about {}.",
    "Write a poem of two verses about {}.",
    "What are the advantages and disadvantages of {}?",
    "Write an email to a friend about {}.",
    "Give me three tips about {}.",
    "Write an outline for an essay about {}.",
    "Describe {} in one paragraph.",
    "Write a dialogue between two people who talk about {}.",
    "What should everyone know about {}?",
    "Write a blog post about {}.",
    "Create a quiz with three questions and answers about {}.",
    "Summarize the most important points about {} in a list.",
)


def make_prompts(count: int, seed: int) -> list[Prompt]:
    """Return up to `count` distinct prompts, a third each of code, arithmetic and everyday tasks, shuffled."""
    rng = random.Random(seed)
    code = distinct(_code_prompts(rng))
    tasks = [Prompt((task.format(topic),)) for task in TASKS for topic in TOPICS]
    for part in (code, tasks):
        rng.shuffle(part)
    share = count // 3
    code, tasks = code[:share], tasks[:share]
    sums = distinct(_arithmetic(rng) for _ in range(2 * count))[: count - len(code) - len(tasks)]
    prompts = distinct([*code, *tasks, *sums])
    rng.shuffle(prompts)
    return prompts


def functions_to_complete(request: str) -> list[Prompt]:
    """Return `request` followed by signature and docstring of a function, for each function of the standard library."""
    return distinct(Prompt((f"{request}```python\n{_head(node)}\n```",)) for node in _functions())


def _code_prompts(rng: random.Random) -> Iterator[Prompt]:
    for node in _functions():
        head, body = _head(node), ast.unparse(node)
        first = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
        texts = (
            f"Complete the following Python function.\n\n```python\n{head}\n```",
            f"Write a Python function `{node.name}`. {first}",
            f"Explain what this Python function does.\n\n```python\n{body}\n```",
            f"Write unit tests for this Python function.\n\n```python\n{body}\n```",
        )
        yield Prompt((rng.choice(texts),))


def _functions() -> Iterator[ast.FunctionDef]:
    """Yield functions of the standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if not SKIPPED_PARTS.isdisjoint(path.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        except SyntaxError:
            continue
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and _tells_enough(node))


def _tells_enough(node: ast.FunctionDef) -> bool:
    """Return whether a function has a docstring and is neither trivial nor long."""
    return len(ast.get_docstring(node) or "") in DOCSTRING_CHARS and ast.unparse(node).count("\n") + 1 in FUNCTION_LINES


def _head(node: ast.FunctionDef) -> str:
    return ast.unparse(ast.FunctionDef(**{**vars(node), "body": node.body[:1], "decorator_list": []}))


def _arithmetic(rng: random.Random) -> Prompt:
    """Return a word problem with one or two steps."""
    name, other = rng.sample(NAMES, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    a, b, c = rng.randint(12, 95), rng.randint(3, 11), rng.randint(2, 9)
    texts = (
        f"{name} has {a} {thing} and gives {b} of them to {other}. At the {place} {name} then buys {c} times as many "
        f"as were given away. How many {thing} does {name} have now?",
        f"One of the {thing} costs ${b}. {name} buys {c} of them at the {place} and pays with ${a + 60}. How much "
        f"change does {name} get?",
        f"{name} and {other} have {2 * a + b} {thing} together, and {name} has {b} more than {other}. How many does "
        f"each of them have?",
        f"A box holds {b} {thing}. The {place} has {a} boxes and sells {c} of them each day. How many {thing} are "
        f"left after two days?",
        f"{name} reads {b} pages a day. How many days does {name} need for a book of {b * a} pages, and how many "
        f"pages are read after {c} days?",
        f"{name} walks {b} km to the {place} and back every day for {c} weeks. How many kilometres is that in total?",
        f"What is {a} * {b} + {c}? Show your steps.",
        f"{other} is {b} years older than {name}. In {c} years {other} will be {a + 20}. How old is {name} today?",
    )
    return Prompt((rng.choice(texts),))
