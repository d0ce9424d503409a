"""Figures with names that people chose."""

from pathlib import Path

import pytest

from train import plots
from train.plots import pyplot_for

NAMES = ["$a$ $\\frac", "100 $", "Äpfel", "日本"]


def drawn(path: Path) -> bytes:
    with pyplot_for(NAMES) as plt:
        figure, axes = plt.subplots()
        axes.set_xticks(range(len(NAMES)), NAMES)
        figure.savefig(path)
        plt.close(figure)
    return path.read_bytes()


def test_names_are_no_formulas_and_what_no_font_has_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "_letters", lambda file: set(map(chr, range(256))))
    assert drawn(tmp_path / "a.png").startswith(b"\x89PNG")
    told = capsys.readouterr().err
    assert told.startswith("no font of this machine has '日本': drawn as boxes; install one")
    assert told.count("\n") == 1


def test_letters_that_one_font_lacks_come_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"DejaVuSans.ttf": {"a", "b"}, "cmss10.ttf": {"a", "本"}, "cmr10.ttf": {"日", "b"}}
    monkeypatch.setattr(plots, "_letters", lambda file: has.get(Path(file).name, set()))
    assert plots._families({"a"}) == (["DejaVu Sans"], set())
    assert plots._families({"b", "日", "語"}) == (["DejaVu Sans", "cmr10"], {"語"})
    assert plots._families({"日", "本"}) == (["DejaVu Sans", "cmr10", "cmss10"], set())


def test_every_letter_of_matplotlibs_own_font_is_known() -> None:
    assert plots._families(set("Äpfel кошка")) == (["DejaVu Sans"], set())
