from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import rand_bbox

from shard.errors import FeedlineError
from train.distributed import World
from train.losses import LossConfig, partner, sample_losses
from train.mix import MixConfig, Mixing, blend, draw, share, spare
from train.model import ModelConfig, make_model
from train.optim import OptimConfig, make_optimizer
from train.schedule import Length
from train.step import StepConfig, TrainStep

LENGTH = Length(steps_per_epoch=10, batch_size=8, steps=100)
IDS = np.arange(8)
BOTH = MixConfig(mixup=0.8, cutmix=1.0)
ELEM = MixConfig(mixup=0.8, cutmix=1.0, mix_mode="elem")


def rows(config: MixConfig, steps: int = 2000, size: int = 64) -> np.ndarray:
    """The first row of many steps."""
    return np.stack([draw(config, 0, 0, step, IDS, size)[0] for step in range(steps)])


def test_batch_mode_draws_once_a_step_and_elem_once_a_sample() -> None:
    batch = draw(BOTH, 0, 0, 7, IDS, 32)
    assert (batch == batch[0]).all()
    assert np.array_equal(draw(BOTH, 0, 3, 7, IDS[::-1], 32), batch)  # the step says it all
    assert not np.array_equal(draw(BOTH, 0, 0, 8, IDS, 32), batch)
    assert not np.array_equal(draw(BOTH, 1, 0, 7, IDS, 32), batch)
    elem = draw(ELEM, 0, 2, 7, IDS, 32)
    assert len(np.unique(elem, axis=0)) == 8
    assert np.array_equal(draw(ELEM, 0, 2, 99, IDS[::-1], 32), elem[::-1])  # epoch and sample say it all
    assert not np.array_equal(draw(ELEM, 0, 3, 7, IDS, 32), elem)


def test_shares_follow_the_beta_distribution_and_the_switch() -> None:
    kept = rows(MixConfig(mixup=0.8), steps=6000)[:, 5]
    assert stats.kstest(kept, stats.beta(0.8, 0.8).cdf).pvalue > 0.01
    assert np.array_equal(rows(MixConfig(mixup=0.8), steps=6000)[:, 0], kept)  # of the label as of the pixels
    cut = rows(BOTH)[:, 3] > 0
    assert 0.45 < cut.mean() < 0.55
    assert 0.2 < (rows(MixConfig(mixup=0.2, mix_prob=0.25))[:, 5] < 1).mean() < 0.3
    assert (rows(MixConfig(mixup=0.2, cutmix=1.0, mix_switch=1.0))[:, 0] == 1).all()


def test_boxes_are_timms() -> None:
    found = rows(MixConfig(cutmix=1.0))
    top, left, bottom, right = found[:, 1:5].T
    np.testing.assert_allclose(found[:, 5], 1 - (bottom - top) * (right - left) / 64**2, rtol=1e-6)
    rng = np.random.RandomState(0)
    np.random.seed(0)  # noqa: NPY002  timm draws from the global generator
    timms = np.array([rand_bbox((64, 64), lam) for lam in rng.rand(4000)])  # yl, yh, xl, xh
    for mine, expected in (
        (top, timms[:, 0]),
        (bottom, timms[:, 1]),
        (left, timms[:, 2]),
        (right, timms[:, 3]),
    ):
        assert mine.mean() == pytest.approx(expected.mean(), abs=2.0)
        assert mine.std() == pytest.approx(expected.std(), rel=0.1)


def images(n: int = 4, side: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 255


def test_mixup_and_cutmix_of_pixels() -> None:
    pixels = images()
    mix = torch.tensor(
        [[0.3, 0, 0, 0, 0, 0.3], [1, 2, 1, 6, 5, 0.75], [1, 0, 0, 0, 0, 1], [0.9, 0, 0, 0, 0, 0.9]]
    )
    out = blend(pixels, mix)
    torch.testing.assert_close(out[0], 0.3 * pixels[0] + 0.7 * pixels[2])
    cut = pixels[1].clone()
    cut[:, 2:6, 1:5] = pixels[3, :, 2:6, 1:5]
    assert torch.equal(out[1], cut)
    assert torch.equal(out[2], pixels[2])
    torch.testing.assert_close(out[3], 0.9 * pixels[3] + 0.1 * pixels[1])


def test_ranks_together_mix_as_one_does() -> None:
    """Rows dealt to ranks position by position find the same partners, and share the draw."""
    pixels = images(16)
    alone = blend(pixels, torch.from_numpy(draw(BOTH, 0, 0, 3, np.arange(16), 8).copy()))
    for world in (2, 4, 8):
        for rank in range(world):
            mine = np.arange(16)[rank::world]
            mix = torch.from_numpy(draw(BOTH, 0, 0, 3, mine, 8).copy())
            assert torch.equal(blend(pixels[mine], mix), alone[mine]), (world, rank)


def step() -> TrainStep:
    torch.manual_seed(0)
    net = make_model(ModelConfig(arch="test_efficientnet_gn"), 4, torch.device("cpu")).eval()
    return TrainStep(net, make_optimizer(net.model, OptimConfig()), StepConfig(precision="fp32"), World())


def test_the_step_mixes_labels_with_the_drawn_share() -> None:
    train = step()
    raw = torch.randint(0, 256, (6, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels, valid = torch.tensor([0, 1, 2, 3, 0, 1]), torch.ones(6, dtype=torch.bool)
    mix = torch.from_numpy(draw(ELEM, 5, 0, 0, np.arange(6), 24).copy())
    logits = train.net(raw, mix)
    expected = sample_losses(logits, labels, LossConfig(), share(mix)).mean().item()
    assert train.forward_backward(raw, labels, valid, mix=mix).item() == pytest.approx(expected, rel=1e-5)
    assert train.forward_backward(raw, labels, valid).item() != pytest.approx(expected, rel=1e-3)


def test_rows_that_are_not_valid_have_no_part_in_anyones_loss() -> None:
    train = step()
    raw = torch.randint(0, 256, (6, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels, valid = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([True, True, False, True, True, True])
    mix = torch.from_numpy(draw(MixConfig(mixup=1.0), 5, 0, 0, np.arange(6), 24).copy())

    def loss() -> float:
        return train.forward_backward(raw, labels, valid, mix=mix).item()

    before = loss()
    raw[2], labels[2] = 255, 3
    assert loss() == before
    assert spare(mix, valid)[5].tolist() == [1, 0, 0, 0, 0, 1]  # the partner of row 2 stays whole
    assert torch.equal(spare(mix, valid)[:5], mix[:5])


def test_mixing_ends_when_it_should_and_needs_a_partner() -> None:
    ids, batch = torch.arange(4), torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    mixing = Mixing(MixConfig(mixup=1.0, mix_until="3ep"), 0, LENGTH)
    assert (mixing(2, 29, ids, batch)[:, 5] < 1).all()  # type: ignore[index]
    assert mixing(3, 30, ids, batch).tolist() == [[1, 0, 0, 0, 0, 1]] * 4  # type: ignore[union-attr]
    assert Mixing(MixConfig(), 0, LENGTH)(0, 0, ids, batch) is None
    with pytest.raises(FeedlineError, match="at least 2 samples per rank"):
        mixing(0, 0, ids[:1], batch[:1])


def test_partner_is_its_own_inverse_for_even_batches() -> None:
    order = torch.arange(10)
    assert torch.equal(partner(partner(order)), order)
    assert not (partner(order) == order).any()
    assert sorted(partner(torch.arange(7)).tolist()) == list(range(7))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"mix_prob": 2.0}, "mix_prob is 2.0"),
        ({"mix_until": "x"}, "mix_until is 'x'"),
    ],
)
def test_impossible_settings_are_errors(given: dict[str, object], message: str) -> None:
    with pytest.raises(FeedlineError, match=message):
        MixConfig(**given)  # type: ignore[arg-type]
