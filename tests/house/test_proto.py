"""The gRPC API: its Python and its image are those of the proto, its style is buf's, and no change breaks clients."""

import shutil
from pathlib import Path

import pytest

from support.gateways import make_proto


def test_the_python_is_that_of_the_proto(tmp_path: Path) -> None:
    make_proto.generate(tmp_path)
    for name in make_proto.GENERATED:
        again = "python tests/support/gateways/make_proto.py"
        assert (make_proto.PROTO / name).read_text() == (tmp_path / name).read_text(), again


def test_the_proto_has_buf_s_style_and_is_that_of_the_image() -> None:
    assert make_proto.lint() == ""
    assert make_proto.IMAGE.read_text() == make_proto.image(), "python tests/support/gateways/make_proto.py"


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("string model = 1;", "string model = 40;", "deleted"),
        ("optional string tier = 2;", "optional int32 tier = 2;", "changed type"),
        ("rpc Complete(CompleteRequest)", "rpc Finish(CompleteRequest)", "deleted"),
    ],
)
def test_a_change_that_breaks_clients_is_seen(tmp_path: Path, was: str, becomes: str, said: str) -> None:
    changed = tmp_path / "proto"
    shutil.copytree(make_proto.PROTO, changed)
    file = changed / make_proto.SOURCE
    assert was in file.read_text()
    file.write_text(file.read_text().replace(was, becomes))
    assert make_proto.breaking() == ""
    assert said in make_proto.breaking(changed)
