from __future__ import annotations

from collections import Counter
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from shard.errors import FeedlineError
from train.__main__ import main
from train.cli import UsageError, parse
from train.config import FREE, Config, differences, flat, load, save
from train.inputs import micro_batch
from train.recipes import RECIPES, about, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_yaml(name: str, tmp_path: Path) -> None:
    config = replace(recipe(name), data="some/data", run_dir=tmp_path)
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config
    assert config.recipe == name


def test_names_are_unique_over_groups() -> None:
    def names(config: Any) -> list[str]:
        values = [(f.name, getattr(config, f.name)) for f in fields(config)]
        return [n for name, v in values for n in (names(v) if is_dataclass(v) else [name])]

    assert [n for n, count in Counter(names(Config())).items() if count > 1] == []
    assert flat(Config()).keys() > FREE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrr: 0.1}", r"there is no key optim\.lrr; did you mean 'lr'\?"),
        ("sedd: 1", "there is no key sedd; did you mean 'seed'"),
        ("seed: one", "seed is 'one'; expected int"),
        ("step: {compile: 1}", r"step\.compile is 1; expected bool"),
        ("step: {precision: bf61}", r"step\.precision is 'bf61'; expected one of bf16, fp16, tf32, fp32"),
        ("model: {mean: [1, 2]}", r"model\.mean is \[1, 2\]; expected a list of 3 numbers"),
        ("model: resnet50", r"model is 'resnet50'; expected keys with values"),
        ("[1, 2]", "the file is"),
        ("a: [", "is not valid YAML"),
        ("schedule: {duration: 0ep}", "duration is '0ep'"),
        ("{mix: {mixup: 0.2, mix_mode: elem}, input: {repeats: 3}}", "and repeats 3: .* all mix alike"),
        ("{mix: {mixup: 0.2, mix_mode: elem}, input: {balance: 0.5}}", r"and balance 0\.5: .* all mix alike"),
    ],
)
def test_wrong_files_are_errors(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(FeedlineError, match=message):
        load(path)


def test_yaml_number_that_is_a_string_to_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 1e-4, weight_decay: 1}")
    assert load(path).optim.lr == 1e-4
    assert load(path).optim.weight_decay == 1.0


def test_flags_override_the_recipe() -> None:
    words = "--data d --recipe cifar10_cpu --model resnet18 --lr 0.5 --no-compile --epochs=3 --mean 0 0 0"
    options = parse(words.split())
    settings = options.settings
    assert (settings.optim.lr, settings.schedule.duration, settings.step.compile) == (0.5, "3ep", False)
    assert settings.model.mean == (0, 0, 0)
    assert settings.run_dir == Path("runs/cifar10_cpu")
    assert differences(recipe("cifar10_cpu"), settings) == [
        f"arch: {recipe('cifar10_cpu').model.arch} → resnet18",
        "mean: (0.4914, 0.4822, 0.4465) → (0.0, 0.0, 0.0)",
        f"lr: {recipe('cifar10_cpu').optim.lr} → 0.5",
        f"duration: {recipe('cifar10_cpu').schedule.duration} → 3ep",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--recipe resnet50_imagenet --eval-size 288", (288, 329)),
        ("--recipe deit3_small --eval-size 384", (384, 384)),
        ("--recipe resnet50_imagenet --eval-size 288 --eval-resize 300", (288, 300)),
        ("--recipe resnet50_imagenet --eval-resize 300", (224, 300)),
    ],
)
def test_a_crop_of_another_size_keeps_its_share_of_the_image(words: str, expected: tuple[int, int]) -> None:
    images = parse(["--data", "d", *words.split()]).settings.input
    assert (images.eval_size, images.eval_resize) == expected


def test_compile_flag_forms() -> None:
    base = ["--data", "d", "--recipe", "digits"]
    assert parse(base).settings.step.compile is None
    assert parse([*base, "--compile"]).settings.step.compile is True
    assert parse([*base, "--compile", "--seed", "2"]).settings.step.compile is True


def test_config_file_on_the_command_line(tmp_path: Path) -> None:
    config = replace(recipe("digits"), data="d", run_dir=Path("first"), seed=7)
    save(config, tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml")]).settings == config
    again = parse(["--config", str(tmp_path / "config.yaml"), "--run-dir", "second"])
    assert again.settings == replace(config, run_dir=Path("second"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recipe digits --dat x", "there is no flag --dat; did you mean '--data'"),
        ("--recipe digit --data x", "there is no recipe 'digit'; did you mean 'digits'"),
        ("--data x", "give --recipe NAME"),
        ("--recipe digits", "--data DATASET is missing"),
        ("--recipe digits --data x --lr fast", "--lr.*'fast'"),
        ("--recipe digits --data x --precision bf17", "bf17.*bf16"),
        ("--recipe digits --data", "--data"),
        ("--recipe digits --data x y", "y"),
        ("--recipe digits --config c.yaml --data x", "exclude each other"),
    ],
)
def test_usage_errors(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=message):
        parse(words.split())
    capsys.readouterr()
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_missing_dataset_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "digits", "--data", str(tmp_path / "nowhere"), "--run-dir", str(tmp_path / "run")]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "nowhere" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--recipe", "cifar10_cpu", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in flat(Config()))
    assert main(["--list-recipes"]) == 0
    text = capsys.readouterr().out
    for name in RECIPES:
        assert name in text
    families = {about(name) for name in RECIPES}
    for line in ("Source:", "Command:", "Expected time:", "Expected accuracy:"):
        assert text.count(line) == len(families)
        assert all(line in family for family in families)


def test_global_batch_is_divided() -> None:
    assert micro_batch(512, 8, 2) == 32
    with pytest.raises(FeedlineError, match=r"512 .* 3 rank.* = 6; the nearest that does is 510"):
        micro_batch(512, 3, 2)
    with pytest.raises(FeedlineError, match="nearest that does is 8"):
        micro_batch(1, 8, 1)
