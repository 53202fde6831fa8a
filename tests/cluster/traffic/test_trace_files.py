"""Public traces are read as they are published, and a bad line is one sentence with file, line, rule and cure."""

import re
from pathlib import Path

import pytest

from sparktier.cluster.traffic.trace_files import read_trace
from sparktier.configs.errors import ArtifactError

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.6805900,396,109\r\n"
)
BURSTGPT = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,s1,1.0,ChatGPT,472,18,490,Conversation log\n"
    "45,s2,1.0,ChatGPT,1087,0,1087,API log\n"
    "118,s3,1.0,GPT-4,417,276,693,Conversation log\n"
    "185,s1,1.0,ChatGPT,1360,647,2007,Conversation log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1300, "output_length": 500, "hash_ids": [0, 1, 2]}\n'
    "\n"
    '{"timestamp": 3000, "input_length": 600, "output_length": 3, "hash_ids": [0, 7]}\n'
)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_an_azure_trace_is_read(tmp_path: Path) -> None:
    found = read_trace(written(tmp_path, "azure.csv", AZURE))
    assert found.at_ms.tolist() == pytest.approx([0.0, 4000.0], abs=0.01)
    assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([374, 396], [44, 109])
    assert (found.session.tolist(), list(found.prefixes)) == ([0, 1], [(), ()])
    assert found.rate_s == pytest.approx(0.25)


def test_azure_times_may_have_a_zone(tmp_path: Path) -> None:
    zoned = AZURE.replace("0,374", "0+01:00,374").replace("0,396", "0+00:00,396")
    found = read_trace(written(tmp_path, "azure.csv", zoned))
    assert found.span_ms == pytest.approx(2 * 3_604_000)


def test_a_burstgpt_trace_is_read_without_its_failures(tmp_path: Path) -> None:
    found = read_trace(written(tmp_path, "burst.csv", BURSTGPT))
    assert found.at_ms.tolist() == [0.0, 113_000.0, 180_000.0]
    assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([472, 417, 1360], [18, 276, 647])
    assert found.session.tolist() == [0, 1, 0]


def test_a_mooncake_trace_is_read_with_its_prefixes(tmp_path: Path) -> None:
    found = read_trace(written(tmp_path, "mooncake.jsonl", MOONCAKE))
    assert found.at_ms.tolist() == [0.0, 3000.0]
    assert list(found.prefixes) == [(0, 1, 2), (0, 7)]


@pytest.mark.parametrize(
    ("name", "text", "where", "said"),
    [
        ("a.csv", AZURE + "yesterday,1,1\n", 4, "TIMESTAMP must be a time"),
        ("a.csv", AZURE + "2023-11-16 18:15:50,0,1\n", 4, "ContextTokens must be a whole number"),
        ("a.csv", AZURE + "2023-11-16 18:15:50,12,1.5\n", 4, "GeneratedTokens must be a whole number"),
        ("a.csv", AZURE + "2023-11-16 18:15:50,12\n", 4, "must have 3 columns"),
        ("a.csv", AZURE.replace("ContextTokens", "Tokens"), 1, "must have the columns of Azure's"),
        ("b.csv", BURSTGPT + "nan,s,1,m,1,1,2,API log\n", 6, "Timestamp must be a number of seconds"),
        ("b.csv", BURSTGPT + "9,s,1,m,1,x,2,API log\n", 6, "Response tokens must be a whole number"),
        ("b.csv", BURSTGPT + '9,s\r1,1,m,1,1,2,"API log\n', 6, "must be CSV"),
        ("m.jsonl", MOONCAKE + "{}\n", 4, "input_length must be a whole number"),
        ("m.jsonl", MOONCAKE + "[1]\n", 4, "must be a JSON object"),
        ("m.jsonl", MOONCAKE.replace("3000", "-1"), 3, "timestamp must be a number of milliseconds"),
        ("m.jsonl", MOONCAKE.replace("[0, 7]", '["x"]'), 3, "hash_ids must be a list of whole numbers"),
        ("m.jsonl", MOONCAKE.replace("[0, 7]", "[1, 2, 3]"), 3, "hash_ids must be of blocks of 512 tokens"),
    ],
)
def test_a_bad_line_is_one_sentence(tmp_path: Path, name: str, text: str, where: int, said: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(ArtifactError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{where}: ")
    assert said in message
    assert re.search(r" \(found .+\)\. [A-Z][^.]+(\.jsonl|'\.\[\]'`)?\.$", message), message


@pytest.mark.parametrize("text", ["", AZURE.partition("\n")[0], "\n".join(AZURE.split("\n")[:2])])
def test_a_trace_without_two_times_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ArtifactError, match=r"must have"):
        read_trace(written(tmp_path, "short.csv", text))
