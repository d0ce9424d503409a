"""Ctrl-C while a program still imports, which takes seconds."""

import importlib
import sys
from types import SimpleNamespace

import pytest


@pytest.mark.parametrize(
    ("name", "slow"),
    [("train", "train.program"), ("bench", "bench.program"), ("shard", "shard.commands")],
)
def test_ctrl_c_while_importing_is_one_line(
    name: str, slow: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = importlib.import_module(f"{name}.__main__")

    def interrupted(module: str, path: object, target: object) -> None:
        if module == slow:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, slow, raising=False)
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=interrupted), *sys.meta_path])
    assert program.main(["--help"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
