"""The bounds of what a grammar compiler gets from a request: schemas, regular expressions and EBNF."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import to_json

from sparktier.serving.gateway.requests.values import BadValue, containers, strict_json

MAX_GRAMMAR_CHARACTERS = 64 << 10
# Compiling takes time as the third power of the repetitions that can follow each other (400 take seconds), and as the
# square of how deep alternatives are nested.
MAX_REGEX_CHARACTERS = 4096
MAX_REGEX_REPETITIONS = 128
MAX_EBNF_REPETITIONS = 256
MAX_PATTERNS_CHARACTERS = 16 << 10
# SGLang checks the schemas of tools, 1.3 ms for each schema in them, in the process that tokenises for all requests.
MAX_SCHEMA_PARTS = 2048
MAX_SCHEMA_DEPTH = 64
_SHOWN_CHARACTERS = 200


def schema_parts(schema: Any) -> int:
    """Return how many lists and objects `schema` holds, itself included."""
    return sum(1 for _ in containers(schema))


def _bounded_schema(schema: dict[str, Any]) -> dict[str, Any]:
    if len(to_json(schema)) > MAX_GRAMMAR_CHARACTERS:
        raise ValueError(f"must have at most {MAX_GRAMMAR_CHARACTERS} bytes as JSON")
    for number, (path, _) in enumerate(containers(schema)):
        if number == MAX_SCHEMA_PARTS:
            raise ValueError(f"must have at most {MAX_SCHEMA_PARTS} lists and objects")
        if len(path) >= MAX_SCHEMA_DEPTH:
            raise ValueError(f"must be nested at most {MAX_SCHEMA_DEPTH} lists and objects deep")
    _check_patterns(schema)
    return schema


def _check_patterns(schema: dict[str, Any]) -> None:
    total = 0
    for path, part in containers(schema):
        for pattern in _patterns(part):
            total += len(pattern)
            try:
                _bounded_regex(pattern)
            except ValueError as error:
                shown = ".".join(map(str, path))[:_SHOWN_CHARACTERS] or "the schema"
                raise ValueError(f"must hold short patterns, one in {shown} {error}") from error
    if total > MAX_PATTERNS_CHARACTERS:
        raise ValueError(f"must have patterns of at most {MAX_PATTERNS_CHARACTERS} characters together")


def _patterns(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]
        if isinstance(part.get("patternProperties"), dict):
            yield from part["patternProperties"]


def _bounded_regex(regex: str) -> str:
    if len(regex) > MAX_REGEX_CHARACTERS:
        raise ValueError(f"must have at most {MAX_REGEX_CHARACTERS} characters")
    return _few_repetitions(regex, most=MAX_REGEX_REPETITIONS)


def _bounded_ebnf(ebnf: str) -> str:
    return _few_repetitions(ebnf, most=MAX_EBNF_REPETITIONS)


def _few_repetitions(grammar: str, *, most: int) -> str:
    if sum(map(grammar.count, "*+?{")) > most:
        raise ValueError(f"must have at most {most} of the characters * + ? {{")
    return grammar


def _schema_text(text: str) -> str:
    try:
        schema = strict_json(text)
    except BadValue as error:
        raise ValueError(f"must hold a JSON schema, but in it {error}".removesuffix(".")) from error
    except ValueError as error:
        raise ValueError(f"must hold a JSON schema ({error})") from error
    if not isinstance(schema, dict):
        raise ValueError("must hold a JSON schema that is an object")
    _bounded_schema(schema)
    return text


Grammar = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]
Schema = Annotated[dict[str, Any], AfterValidator(_bounded_schema)]
Regex = Annotated[str, Field(min_length=1), AfterValidator(_bounded_regex)]
Ebnf = Annotated[Grammar, AfterValidator(_bounded_ebnf)]
SchemaText = Annotated[Grammar, AfterValidator(_schema_text)]
