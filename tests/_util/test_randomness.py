import torch

from cardiodit._util.randomness import generator_for


def test_the_same_seed_and_index_draw_the_same() -> None:
    assert torch.equal(torch.randn(5, generator=generator_for(3, 7)), torch.randn(5, generator=generator_for(3, 7)))


def test_no_two_of_a_hundred_thousand_samples_share_a_generator() -> None:
    assert len({generator_for(0, i).initial_seed() for i in range(100_000)}) == 100_000


def test_seeds_and_neighbouring_samples_are_unrelated() -> None:
    draws = torch.stack([torch.randn(4096, generator=generator_for(s, i)) for s in range(4) for i in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.08  # five standard deviations of 1/√4096


def test_the_numbers_stay_the_same_in_later_versions() -> None:
    assert generator_for(0, 0).initial_seed() == 2968811710
    assert generator_for(0, 1).initial_seed() == (2968811710 + 0x9E3779B9) % 2**32
