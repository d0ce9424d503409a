"""Ctrl-C while a program still imports, which takes seconds."""

import importlib
import subprocess
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


@pytest.mark.parametrize("name", ["train", "bench", "shard"])
def test_nothing_slow_is_imported_before_it_is_caught(name: str) -> None:
    code = f"import sys, {name}.__main__; print(sorted({{'numpy', 'pyarrow', 'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_of_the_package_are_there_when_they_are_asked_for() -> None:
    code = "import shard; print(*(getattr(shard, name).__name__ for name in shard.__all__)); shard.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["Dataset", "FeedlineError", "Split"]
    assert done.stderr.splitlines()[-1] == "AttributeError: module 'shard' has no attribute 'nothing'"
