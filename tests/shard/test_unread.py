"""Commands whose output is closed before they have written all."""

import os

import pytest

from shard.unread import unless_unread


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
