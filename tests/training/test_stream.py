"""The order of samples: a function of the seed and the visit, whoever loads them."""

import pytest
import torch

from cardiodit.training.harness.schedule import BucketOrder, DistributedSampler, SampleOrder, Schedule, seed_for
from cardiodit.training.settings import Training


def test_every_epoch_visits_everybody_in_an_order_of_its_own() -> None:
    visits = SampleOrder(7, seed=3)
    epochs = [[visits[e * 7 + i] for i in range(7)] for e in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [SampleOrder(7, seed=3)[i] for i in (20, 3, 20)] == [visits[20], visits[3], visits[20]]
    assert [SampleOrder(7, seed=4)[i] for i in range(7)] != epochs[0]


@pytest.mark.parametrize(("processes", "accumulation", "batch"), [(1, 1, 8), (1, 4, 2), (2, 2, 2), (4, 1, 2)])
def test_a_step_has_the_same_visits_however_they_are_shared(processes: int, accumulation: int, batch: int) -> None:
    shares = [list(DistributedSampler(3, 5, batch, accumulation, p, processes)) for p in range(processes)]
    assert all(len(share) == len(DistributedSampler(3, 5, batch, accumulation, 0, processes)) for share in shares)
    for step in (0, 1):
        seen = [v for share in shares for b in share[step * accumulation : (step + 1) * accumulation] for v in b]
        assert sorted(seen) == list(range((3 + step) * 8, (4 + step) * 8))


def test_purposes_have_seeds_of_their_own() -> None:
    seeds = {seed_for(seed, purpose) for seed in range(50) for purpose in ("order", "noise", "step", "validation")}
    assert len(seeds) == 200


def calendar(**settings) -> Schedule:
    return Schedule.of(Training(**{"num_train_epochs": 10, **settings}), samples=30, processes=2)


def test_epochs_in_steps() -> None:
    assert calendar(train_batch_size=3, gradient_accumulation_steps=2).steps == 25  # 300 visits, 12 a step
    assert calendar(train_batch_size=4).steps == 38  # the last step goes a little beyond
    assert calendar(max_train_steps=7).steps == 7
    assert calendar(train_batch_size=3).every(0.5, None) == 2  # half of 5 steps, to the even one
    assert calendar().every(0.001, None) == 1
    assert calendar().every(10, 4) == 4


def test_warm_up_then_cosine_to_its_end() -> None:
    """Linear over the warm-up; half-way between ends at half the cosine; the given share at the end."""
    course = calendar(lr_scheduler="cosine", lr_warmup_steps=10, max_train_steps=110, lr_min_ratio=0.01)
    assert [course.rate(s) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert course.rate(60) == pytest.approx(0.505)
    assert course.rate(110) == pytest.approx(0.01)


def test_exponential_falls_once_an_epoch_and_constant_never() -> None:
    course = calendar(lr_scheduler="exponential", lr_gamma=0.9, train_batch_size=3)  # 5 steps an epoch
    assert [course.rate(s) for s in (0, 4, 5, 10)] == pytest.approx([1, 1, 0.9, 0.81])
    assert calendar(lr_warmup_steps=0).rate(1000) == 1.0


def test_the_published_warm_up_is_in_epochs() -> None:
    course = Schedule.of(Training(lr_warmup_epochs=100, num_train_epochs=3000), samples=80, processes=1)
    assert (course.warmup, course.steps) == (8000, 240_000)


def test_no_draw_from_global_state() -> None:
    before = torch.get_rng_state()
    [SampleOrder(5, 0)[i] for i in range(20)]
    assert torch.equal(torch.get_rng_state(), before)


def test_buckets_fill_steps_with_one_shape_and_visit_every_sample() -> None:
    shapes = [(1, 2)] * 5 + [(1, 3)] * 4 + [(1, 4)]
    order = BucketOrder(shapes, 4, seed=0)
    assert len(order) == 8 + 4 + 4
    epochs = [[order[visit] for visit in range(start, start + 16)] for start in (0, 16)]
    for visits in epochs:
        assert set(visits) == set(range(10))
        assert all(len({shapes[i] for i in visits[step : step + 4]}) == 1 for step in range(0, 16, 4))
    assert epochs[0] != epochs[1]
    assert [BucketOrder(shapes, 4, seed=0)[visit] for visit in range(16)] == epochs[0]
