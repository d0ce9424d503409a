"""Everything a user can get wrong on the command line or in a file: one line that names it, and nothing is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from train.__main__ import main
from train.cli import parse
from train.config import Config, flat, to_dict
from train.needs import NEEDS
from train.recipes import RECIPES


def fails(words: list[str], capsys: pytest.CaptureFixture[str], status: int | None = None) -> str:
    """Run, and return the one line it ends with."""
    code = main(words)
    out, err = capsys.readouterr()
    assert code == status if status is not None else code in (1, 2)
    assert out == ""
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    return err


def misspelt(name: str) -> str:
    """The name without its middle letter."""
    middle = len(name) // 2
    return name[:middle] + name[middle + 1 :]


@pytest.mark.parametrize("name", sorted(flat(Config())))
def test_every_misspelt_flag_names_the_nearest(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = misspelt(name)
    if wrong in flat(Config()):
        wrong = name + "x"
    err = fails(["--recipe", "digits", "--data", "d", f"--{wrong.replace('_', '-')}", "1"], capsys, status=2)
    assert f"--{wrong.replace('_', '-')}; did you mean '--{name.replace('_', '-')}'?" in err


@pytest.mark.parametrize("flag", ["--no-such-flag", "--xyz", "--learning"])
def test_a_flag_that_is_like_no_other_gets_no_suggestion(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = fails(["--recipe", "digits", "--data", "d", flag, "1"], capsys, status=2)
    assert err == f"error: there is no flag {flag}; --help lists them\n"


def keys(values: dict[str, object], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys of a configuration file."""
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += keys(value, (*path, key))
    return found


@pytest.mark.parametrize("path", keys(to_dict(Config())), ids=".".join)
def test_every_misspelt_key_of_a_file_names_file_group_and_nearest(
    path: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *groups, key = path
    wrong: object = {key + "_": 1}
    for group in reversed(groups):
        wrong = {group: wrong}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(wrong))
    err = fails(["--config", str(file), "--data", "d"], capsys)
    assert f"{file}: there is no key {'.'.join([*groups, key + '_'])}; " in err
    assert re.search(rf"did you mean '{key}'|choose one of .*\b{key}\b", err), err


PATHS = {
    "--data {}/none": "none",
    "--data {data} --pretrained {}/w.pth": "w.pth",
    "--data {data} --resume {}/c.pt": "there is no checkpoint",
    "--data {data} --run-dir {}/file/run": "cannot make the run folder",
}


@pytest.mark.parametrize("words", PATHS)
def test_missing_paths(
    words: str, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    (tmp_path / "file").touch()
    text = words.format(tmp_path, data=dataset_dir)
    run_dir = [] if "--run-dir" in text else ["--run-dir", str(tmp_path / "run")]
    err = fails([*flags, *text.split(), *run_dir], capsys)
    assert PATHS[words] in err


def test_a_missing_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot read the configuration" in fails(
        ["--config", str(tmp_path / "c.yaml"), "--data", "d"], capsys
    )


COMBINATIONS = {
    "--batch-size 10 --accumulate 3": "batch_size 10 does not divide",
    "--batch-size 1000": "fewer than batch_size 1000",
    "--precision fp16": "fp16.*needs a GPU",
    "--warmup-epochs 9": "warmup is '9ep' and cooldown '0ep', together longer than the duration '3ep'",
    "--train-split trian": "trian.*train",
    "--eval-split test": "test.*val; or give another --eval-split",
    "--arch cifar_resnet9 --pretrained timm": "cannot get timm's weights of 'cifar_resnet9': .*give --",
    "--arch test_vit": r"'test_vit' does not take images of 24 px \(--size\)",
    "--arch test_vit --model-args img_size=7": "'test_vit' does not take ",
    "--arch test_vit --model-args img_size=24,patch_size=8 --eval-size 30": r"30 px \(--eval-size\)",
    "--arch resnet5O": "did you mean 'resnet50'",
    "--optimizer adamww": "did you mean 'adamw'",
    "--augment rant-m9": "rant-m9",
    "--trackers tensorbord": "did you mean 'tensorboard'",
    "--patience 0": "patience is 0",
    "--keep-last 0": "keep_last is 0",
    "--checkpoint-every 0": "checkpoint_every is 0",
    "--hw-decoder-load 2 --device cuda": "hw_decoder_load is 2.0; it must lie in 0 … 1",
    "--loader-threads 0": "loader_threads is 0; it must lie in 1 … 1024",
    "--loader-threads 100000": "loader_threads is 100000; it must lie in 1 … 1024",
    "--log-every 0": "log_every is 0",
    "--profile-steps 0": "profile_steps is 0",
    "--timeout-s 0": "timeout_s is 0",
    "--std 0 1 1": "std is",
    "--head mlp --head-hidden 0": "head_hidden is 0",
    "--balance 2": "balance is 2.0",
    "--balance 0.5 --repeats 2": "which needs shuffle 'global' and repeats 1",
    "--class-weights balancd": "class_weights is 'balancd'; give none, balanced, or a file",
}


# Flags that do nothing on top of `digits` on a CPU, and what each needs.
NEEDED = {
    "--ema-warmup": "--ema-decay",
    "--clip-mode agc": "--clip-grad",
    "--mix-prob 0.5": "--mixup or --cutmix",
    "--mix-switch 0.5 --mixup 0.2": "both --mixup and --cutmix",
    "--freeze-for 1ep": "--freeze",
    "--head-hidden 8": "--head mlp",
    "--head-drop 0.2": "--head mlp",
    "--before knn": "--pretrained",
    "--model-input": "--pretrained",
    "--min-change 1 --target 90": "--patience",
    "--stop-mode max": "--patience or --target",
    "--profile-steps 3": "--profile",
    "--scale 0.5 1": "--crop random-resized",
    "--pad 2 --crop random-resized": "--crop pad",
    "--erase-mode rand": "--erase",
    "--window 2": "--shuffle window",
    "--size_multiple=16": "--start-size",
    "--compile-mode max-autotune --device cpu": "--compile",
    "--hw-decoder-load 0 --device cpu": "a GPU, and DALI",
    "--hw-decoder-load 0 --device cuda --loader-backend torch": "a GPU, and DALI",
    "--compress-grads": "several ranks",
    "--decay-factor 0.5": "--decay step",
    "--decay-power 3": "--decay polynomial",
    "--final-lr 0.1 --decay constant": "a --decay other than constant",
    "--warmup-lr 0.1 --warmup-epochs 0": "--warmup",
    "--momentum 0.8 --optimizer adamw": "an --optimizer that has one",
    "--memory-gib 4": "--find-batch-size",
}


@pytest.mark.parametrize("words", NEEDED)
def test_flags_that_would_do_nothing(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    err = fails(["--recipe", "digits", "--data", "d", *words.split()], capsys, status=2)
    flag = re.split("[ =]", words)[0].replace("_", "-")
    assert err.startswith(f"error: {flag} does nothing here: it needs {NEEDED[words]}"), err


@pytest.mark.parametrize(
    "words",
    [
        "--no-ema-warmup",
        "--ema-warmup --ema-decay 0.9",
        "--mix-until 2ep --cutmix 1",
        "--stop-mode min --target 1",
        "--compile-mode default --compile",
        "--decay step --decay-factor 0.5",
        "--final-lr 0.1 --decay constant --cooldown 1ep",
        "--momentum 0.8",
        "--hw-decoder-load 0 --device cuda",
    ],
)
def test_flags_that_have_what_they_need(words: str) -> None:
    parse(["--recipe", "digits", "--data", "d", *words.split()])


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_may_hold_what_waits_for_a_flag(name: str) -> None:
    parse(["--recipe", name, "--data", "d"])


def test_one_rank_left_of_several_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    parse(["--recipe", "digits", "--data", "d", "--compress-grads"])


def test_the_table_of_needs_names_keys_that_there_are() -> None:
    keys = [key for need in NEEDS for key in need.keys]
    assert len(keys) == len(set(keys))
    assert flat(Config()).keys() >= set(keys)


@pytest.mark.parametrize("words", COMBINATIONS)
def test_impossible_values_and_combinations(
    words: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = fails([*flags, *words.split(), "--run-dir", str(tmp_path / "run")], capsys)
    assert re.search(COMBINATIONS[words], err), err
    assert not list(tmp_path.rglob("*.pt"))
