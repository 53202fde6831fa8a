"""Makes open questions for an assistant: roles to play, texts to edit, choices to weigh, things to explain.

They calibrate a drafter and never train it: a drafter is most confident on the kinds of text it was trained on, so its
confidence must be judged on another kind. The same seed gives the same prompts.
"""

import itertools
import random

from sparktier.drafter.data.prompts import Prompt, Split, of_split

_WHO = (
    "a museum guide", "a nervous job applicant", "a retired sailor", "a strict editor", "a village doctor",
    "a stand-up comedian", "a city planner", "an astronaut on a long flight", "a sceptical journalist", "a new parent",
    "a football coach", "a tax adviser", "a medieval blacksmith", "a school librarian", "a weather forecaster",
    "a detective in a small town", "a beekeeper", "a tired night nurse", "a chess champion", "a travel agent",
)  # fmt: skip
_WHAT = (
    "why bridges need expansion joints", "the fall of the Berlin Wall", "how antibiotics lose their power",
    "what inflation does to savings", "the difference between weather and climate", "how a refrigerator cools",
    "the causes of the First World War", "why leaves change colour", "how courts weigh evidence",
    "the ethics of animal testing", "how tides arise", "what a central bank does", "the rise of city states",
    "how a search engine ranks pages", "why languages die out", "the life of a glacier", "how batteries store energy",
    "the idea of free will", "how a bill becomes law", "the spread of the potato", "why we forget names",
    "how a jet engine works", "the limits of opinion polls", "what makes a joke funny", "how coral islands form",
)  # fmt: skip
_FORMS = (
    "You are {who}. Stay in that role and tell a visitor about {what}. Open with a question of your own.",
    "Imagine {who} who has to speak for two minutes on {what}. Write the speech.",
    "Write a letter from {who} to the local newspaper about {what}, polite in tone but firm in its demand.",
    "What would {who} find hardest to understand about {what}, and how would you make it clear?",
    "Compare how {who} and a university professor would explain {what}. Where would they disagree?",
    "I have to present {what} to {who} tomorrow. Which three points should I make, and in which order? Give reasons.",
    "Draft the opening scene of a play in which {who} quarrels with a neighbour about {what}.",
    "Someone claims that {what} concerns nobody but {who}. Argue against this, and name the best point on their side.",
    'Here is a note: "Met {who} on Tuesday at 9:40 in room 12, spoke about {what}, 35 minutes, next time on the 14th." '
    "Return subject, person, weekday, start and end of the meeting as JSON.",
    "Read this and rate from 1 to 5 how useful it is, with one sentence of reasons: "
    '"The talk by {who} on {what} was too long, but the examples stayed with me, and I have used two of them since."',
    "{who} reads a 240-page book on {what}, 15 pages on each weekday and 30 on Saturdays and Sundays, starting on a "
    "Monday. On which weekday is it finished? Think it through.",
    "Three people, one of them {who}, sit in a row and talk about {what}. The youngest sits left of the oldest, and "
    "the one in the middle is neither. Who sits where? Explain each step.",
    "Design a small experiment or a survey with which {who} could test a claim about {what}. Say what could go wrong.",
    "Write a Python program for {who} that keeps notes on {what} in a file, with commands to add, list and search.",
    'Turn the subject "{what}" into a short fable with {who} in it. End with its moral in one line.',
    "Give {who} a reading plan on {what} for one week, as a table with day, subject and a question to answer.",
)  # fmt: skip


def open_questions(count: int, seed: int, split: Split = "calibrate") -> list[Prompt]:
    """Return up to `count` of the prompts of `split`, drawn evenly from all kinds."""
    rng = random.Random(seed)
    kinds = [_kind(form, split, rng) for form in _FORMS]
    evenly = [prompt for row in itertools.zip_longest(*kinds) for prompt in row if prompt is not None]
    return evenly[:count]


def _kind(form: str, split: Split, rng: random.Random) -> list[Prompt]:
    filled = [form.format(who=who, what=what) for who in _WHO for what in _WHAT]
    judged = of_split((Prompt((text[0].upper() + text[1:],)) for text in filled), split)
    return rng.sample(judged, len(judged))
