"""How commands end."""

import os

import pytest

from shard.ending import in_one_line, unless_unread
from shard.errors import FeedlineError


def test_a_closed_output_is_141_and_another_broken_pipe_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        print("much")
        return 0

    def another() -> int:
        raise BrokenPipeError("a worker's")

    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert unless_unread(work) == 0
        with pytest.raises(BrokenPipeError, match="worker"):
            unless_unread(another)
        os.close(reader)
        assert unless_unread(work) == 141


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (FeedlineError("no such thing"), 1, "error: no such thing\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_goes_wrong_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    assert in_one_line(work) == status
    assert capsys.readouterr() == ("", line)
