"""The verdict, from made-up figures: each bottleneck on a CPU and beside a GPU, and what makes it sure."""

from dataclasses import replace

import pytest

from bench.bottleneck import BOTTLENECKS, Costs, judge

# A CPU with 4 cores: reading 10 µs, decoding 4 ms, augmenting 1 ms, the model 2 ms of CPU per image.
CPU = Costs(
    storage_s=1e-5, prepare_s=1.25e-3, model_s=0.5e-3, read_core_s=1e-5, decode_core_s=4e-3, augment_core_s=1e-3,
    model_core_s=2e-3, cores=4, shared=True, real_s=1.8e-3,
)  # fmt: skip
# A GPU that takes 2,500 images/s, cores that prepare 4,000.
GPU = Costs(
    storage_s=1e-5, copy_s=1e-5, prepare_s=0.25e-3, model_s=0.4e-3, decode_core_s=3e-3, augment_core_s=1e-3,
    model_core_s=0.1e-3, augment_share=0.25, cores=16, shared=False, real_s=0.41e-3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        (CPU, "decode"),
        (replace(CPU, augment_core_s=9e-3), "augment"),
        (replace(CPU, model_s=5e-3, model_core_s=20e-3), "model"),
        (replace(CPU, storage_s=3e-3), "storage"),
        (replace(CPU, copy_s=3e-3), "host-to-device"),
        (GPU, "model"),
        (replace(GPU, prepare_s=1e-3), "decode"),
        (replace(GPU, prepare_s=1e-3, augment_share=0.7), "augment"),
        (replace(GPU, storage_s=1e-3), "storage"),
        (replace(GPU, copy_s=1e-3), "host-to-device"),
    ],
)
def test_the_planted_bottleneck_is_named(costs: Costs, expected: str) -> None:
    assert costs.bottleneck() == expected
    assert expected in BOTTLENECKS


def test_on_shared_cores_it_is_cpu_seconds_that_count_and_not_who_waits() -> None:
    # The loop waits for nothing, for decoding keeps up by taking most of the cores from the model.
    costs = replace(
        CPU, decode_core_s=8e-3, model_core_s=5e-3, prepare_s=2.2e-3, model_s=1.3e-3, wait_share=0.0
    )
    assert costs.bottleneck() == "decode"
    assert costs.times()["cores"] == pytest.approx((8 + 1 + 5 + 0.01) / 4 * 1e-3, rel=0.05)


def test_cores_that_others_use_do_not_count() -> None:
    # Preparing alone kept only 2 of 4 cores busy: storage of 3 ms is then no worse than the cores.
    busy = replace(CPU, prepare_s=2.5e-3, model_s=1e-3, storage_s=3e-3)
    assert busy.free_cores == pytest.approx(2.0)
    assert busy.times()["cores"] == pytest.approx(7.01e-3 / 2)
    assert busy.bottleneck() == "decode"
    assert replace(busy, prepare_s=1.25e-3, model_s=0.5e-3).bottleneck() == "storage"


def test_a_step_that_cannot_use_all_cores_is_a_bound_of_its_own() -> None:
    costs = replace(CPU, model_s=6e-3, model_core_s=6e-3)
    assert costs.times()["model"] == 6e-3 > costs.times()["cores"]
    assert costs.bottleneck() == "model"


def test_training_that_waits_for_bytes_overrules_a_storage_that_was_fast_alone() -> None:
    assert replace(CPU, real_s=9e-3, wait_share=0.8, read_wait_share=0.7).bottleneck() == "storage"
    assert replace(CPU, real_s=9e-3, wait_share=0.8, read_wait_share=0.3).bottleneck() == "decode"


def test_the_repeats_vote() -> None:
    slow = replace(CPU, storage_s=4e-3)
    verdict = judge([CPU, slow, CPU])
    assert (verdict.bottleneck, verdict.agreeing, verdict.repeats) == ("decode", 2, 3)
    assert verdict.real == pytest.approx(1 / 1.8e-3)
    assert verdict.possible == pytest.approx(4 / 7.01e-3)


def test_training_below_what_its_parts_promise_is_uneven() -> None:
    assert not judge([CPU]).uneven
    assert judge([replace(CPU, real_s=3e-3)]).uneven
