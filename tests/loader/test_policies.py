"""Policies against the libraries that define them, and the laws of keyed drawing."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data.auto_augment import LEVEL_TO_ARG, rand_augment_transform
from torchvision.transforms.v2 import AutoAugment as TorchvisionAutoAugment
from torchvision.transforms.v2 import AutoAugmentPolicy
from torchvision.transforms.v2 import TrivialAugmentWide as TorchvisionTrivial

from loader import (
    AutoAugment,
    ColorJitter,
    Compose,
    RandAugment,
    RandomErasing,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomResizedCrop,
    RandomSolarize,
    ThreeAugment,
    TrivialAugmentWide,
    parse_policy,
)
from loader.ops import Op
from loader.policies import Draw, Policy
from loader.policies.auto_augment import IMAGENET_POLICY
from shard.errors import FeedlineError

POLICIES: list[Policy] = [
    RandAugment.parse("rand-m7-mstd0.5-inc1"),
    RandAugment.parse("rand-m9-n3-mstdinf"),
    TrivialAugmentWide(),
    AutoAugment(),
    ThreeAugment(),
    ColorJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1),
    RandomGrayscale(probability=0.2),
    RandomSolarize(probability=0.2),
    RandomGaussianBlur(),
]
POLICY = st.sampled_from(POLICIES)


def draw(policy: Policy, ids: np.ndarray, seed: int = 0, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Operations [B, L] and arguments [B, L, ARGS]."""
    layers = policy.layers(Draw(seed, epoch, ids), 224)
    return np.stack([op for op, _ in layers], axis=1), np.stack([arg for _, arg in layers], axis=1)


@given(policy=POLICY, ids=st.lists(st.integers(0, 10**9), min_size=1, max_size=30), data=st.data())
def test_a_draw_depends_on_the_sample_alone(policy: Policy, ids: list[int], data: st.DataObject) -> None:
    op, arg = draw(policy, np.array(ids))
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=9))
    op_alone, arg_alone = draw(policy, np.array(ids)[rows])
    np.testing.assert_array_equal(op[rows], op_alone)
    np.testing.assert_array_equal(arg[rows], arg_alone)


@given(policy=POLICY, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_layers_hold_what_they_promise(policy: Policy, seed: int, epoch: int) -> None:
    op, _ = draw(policy, np.arange(200), seed, epoch)
    assert op.shape == (200, len(policy.choices))
    for k, choices in enumerate(policy.choices):
        assert set(op[:, k].tolist()) <= {0, *choices}
    other, _ = draw(policy, np.arange(200), seed, epoch + 1)
    assert (op != other).any()


@pytest.mark.parametrize(
    "text", ["rand-m7-mstd0.5-inc1", "rand-m9-n3-mstd0.5", "rand-m15-p0.7-mmax20", "rand"]
)
def test_the_notation_means_what_timm_takes_it_for(text: str) -> None:
    mine, theirs = RandAugment.parse(text), rand_augment_transform(text, {})
    op = theirs.ops[0]
    assert mine.layers_per_image == theirs.num_layers
    assert (mine.magnitude, mine.probability, mine.std) == (op.magnitude, op.prob, op.magnitude_std)
    assert mine.maximum == (op.magnitude_max or 10)
    assert mine.increasing == any("Increasing" in o.name for o in theirs.ops)


TIMM = {
    "AutoContrast": Op.AUTOCONTRAST, "Equalize": Op.EQUALIZE, "Invert": Op.INVERT, "Rotate": Op.AFFINE_LINEAR,
    "Posterize": Op.POSTERIZE, "Solarize": Op.SOLARIZE, "SolarizeAdd": Op.SOLARIZE_ADD, "Color": Op.COLOR,
    "Contrast": Op.CONTRAST, "Brightness": Op.BRIGHTNESS, "Sharpness": Op.SHARPNESS, "ShearX": Op.AFFINE_LINEAR,
    "ShearY": Op.AFFINE_LINEAR, "TranslateXRel": Op.AFFINE_LINEAR, "TranslateYRel": Op.AFFINE_LINEAR,
}  # fmt: skip
MATRIX_ENTRY = {"ShearX": 1, "ShearY": 3, "TranslateXRel": 2, "TranslateYRel": 5}


@pytest.mark.parametrize("magnitude", [0.0, 1.3, 5.0, 7.5, 10.0])
@pytest.mark.parametrize("increasing", [False, True])
def test_magnitudes_mean_what_timm_makes_of_them(
    magnitude: float, increasing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = rand_augment_transform(f"rand-inc{int(increasing)}", {}).ops
    mine = RandAugment(increasing=increasing).operations()
    assert len(mine) == len(theirs)
    for (op, arguments), one in zip(mine, theirs, strict=True):
        name = one.name.removesuffix("Increasing")
        assert op == TIMM[name]
        for sign in (-1.0, 1.0):
            monkeypatch.setattr(random, "random", lambda sign=sign: 0.9 if sign < 0 else 0.1)
            args = arguments(np.array([magnitude / 10]), np.array([sign]), 224)[0]
            level = LEVEL_TO_ARG[one.name]
            expected = level(magnitude, {})[0] if level else 0.0
            if name == "Rotate":
                assert math.degrees(math.atan2(args[3], args[0])) == pytest.approx(expected)
                # the middle stays where it is
                np.testing.assert_allclose(args[[0, 3]] * 112 + args[[1, 4]] * 112 + args[[2, 5]], 112)
            elif name.startswith("Translate"):
                assert args[MATRIX_ENTRY[name]] == pytest.approx(expected * 224)
            else:
                assert args[MATRIX_ENTRY.get(name, 0)] == pytest.approx(expected)


def test_rand_augment_draws_as_often_and_as_strongly_as_it_should() -> None:
    op, arg = draw(RandAugment.parse("rand-m5-mstd1-p0.5"), np.arange(40_000))
    assert (op == 0).mean() == pytest.approx(0.5, abs=0.01)
    shares = np.bincount(op[op > 0], minlength=16) / (op > 0).sum()
    assert shares[Op.INVERT] == pytest.approx(1 / 15, abs=0.005)
    assert shares[Op.AFFINE_LINEAR] == pytest.approx(5 / 15, abs=0.01)
    magnitude = (arg[..., 0][op == Op.BRIGHTNESS] - 0.1) / 1.8 * 10
    assert magnitude.mean() == pytest.approx(5, abs=0.1)
    assert magnitude.std() == pytest.approx(1, abs=0.05)


def test_trivial_augment_has_torchvisions_magnitudes() -> None:
    space = TorchvisionTrivial._AUGMENTATION_SPACE
    order = [
        "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Color", "Contrast", "Brightness", "Sharpness",
        "Posterize", "Solarize", "AutoContrast", "Equalize",
    ]  # fmt: skip
    assert {*order, "Identity"} == set(space)
    entry = {"ShearX": 1, "ShearY": 3, "TranslateX": 2, "TranslateY": 5}
    for name, (_, arguments) in zip(order, TrivialAugmentWide().operations(), strict=True):
        values = space[name][0](31, 224, 224)
        args = arguments(np.arange(31) / 30, np.ones(31), 224)
        if values is None:
            assert not args.any()
            continue
        expected = values.double().numpy()
        if name == "Rotate":
            np.testing.assert_allclose(np.degrees(np.arctan2(args[:, 3], args[:, 0])), expected, atol=1e-4)
        elif name in ("Color", "Contrast", "Brightness", "Sharpness"):
            np.testing.assert_allclose(args[:, 0], 1 + expected, atol=1e-6)
        elif name == "Solarize":
            np.testing.assert_allclose(args[:, 0], 255 * expected, atol=1e-4)
        elif name.startswith("Translate"):
            # torchvision's linspace in float32 gives 15.999998 for 16, and it truncates
            np.testing.assert_allclose(args[:, entry[name]], np.trunc(expected + 1e-4))
        else:
            np.testing.assert_allclose(args[:, entry.get(name, 0)], expected, atol=1e-6)


def test_auto_augment_has_torchvisions_table() -> None:
    theirs = TorchvisionAutoAugment(AutoAugmentPolicy.IMAGENET)._policies
    plain = [tuple((name.replace("_", ""), p, m) for name, p, m in pair) for pair in IMAGENET_POLICY]
    assert plain == [tuple((name.lower(), p, m or 0) for name, p, m in pair) for pair in theirs]
    op, _ = draw(AutoAugment(), np.arange(20_000))
    assert (op[:, 1] == Op.EQUALIZE).mean() == pytest.approx(
        sum(p for _, (name, p, _) in IMAGENET_POLICY if name == "equalize") / 25, abs=0.01
    )


def test_colour_jitter_keeps_its_bounds_and_takes_every_order() -> None:
    op, arg = draw(ColorJitter(brightness=0.4, contrast=1.5, hue=0.1), np.arange(5000))
    bounds = {Op.BRIGHTNESS: (0.6, 1.4), Op.CONTRAST: (0.0, 2.5), Op.HUE: (-0.1, 0.1)}
    for code, (low, high) in bounds.items():
        values = arg[..., 0][op == code]
        assert len(values) == 5000
        assert low <= values.min() < low + 0.02 < high - 0.02 < values.max() <= high
    orders, counts = np.unique(op, axis=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 700


def test_three_augment_takes_each_in_a_third_of_cases() -> None:
    op, arg = draw(ThreeAugment(), np.arange(9000))
    for code in (Op.GRAYSCALE, Op.SOLARIZE, Op.BLUR):
        assert (op == code).mean() == pytest.approx(1 / 3, abs=0.02)
    sigma = arg[..., 0][op == Op.BLUR]
    assert 0.1 <= sigma.min() < 0.2 < 1.9 < sigma.max() <= 2
    assert set(arg[..., 0][op == Op.SOLARIZE].tolist()) == {128.0}


def test_policies_in_a_row_draw_independently() -> None:
    twice = Compose(
        RandomResizedCrop(size=64), (RandomGrayscale(probability=0.5), RandomGrayscale(probability=0.5))
    )
    sides = np.full(4000, 100, np.int32)
    ops = twice.params(0, 0, np.arange(4000), sides, sides).ops
    assert ops is not None
    assert (ops.op[:, 0] == ops.op[:, 1]).mean() == pytest.approx(0.5, abs=0.04)


@given(size=st.sampled_from([32, 224]), seed=st.integers(0, 20))
def test_erased_boxes_keep_their_bounds(size: int, seed: int) -> None:
    erase = RandomErasing(probability=0.5, area=(0.05, 0.2)).draw(seed, 0, np.arange(400), size)
    top, left, height, width = erase.box.T.astype(float)
    hit = height > 0
    assert 0.35 < hit.mean() < 0.65
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= size).all()
    assert (left + width <= size).all()
    area = (height * width)[hit] / size**2
    assert area.min() > 0.04
    assert area.max() < 0.22


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-x3", r"section 'x3'; known are m7"),
        ("rand-tweights", "section 'tweights'"),
        ("cutout", "augmentation policy is 'cutout'; give rand-m9"),
        ("rand-n0", "layers_per_image is 0"),
    ],
)
def test_unknown_policies_are_named(text: str, message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        parse_policy(text)
    with pytest.raises(FeedlineError, match=r"hue is 0\.7"):
        ColorJitter(hue=0.7)
    with pytest.raises(FeedlineError, match="mode is 'blue'"):
        RandomErasing(mode="blue")
