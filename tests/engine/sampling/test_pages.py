"""Reference counts, forks and the free list of the page pool."""

import random

import pytest

from weft.engine.sampling.pages import Copy, OutOfPages, PagePool, pages_for


def test_a_started_page_counts_as_a_page() -> None:
    assert [pages_for(tokens, 4) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_an_allocation_beyond_the_free_pages_takes_nothing() -> None:
    pool = PagePool(3, 4)
    pages = pool.allocate(2)
    with pytest.raises(OutOfPages, match="2 pages asked for, 1 free"):
        pool.allocate(2)
    pool.check_integrity([pages])


def test_a_shared_page_is_free_only_after_its_last_owner() -> None:
    pool = PagePool(2, 4)
    pages = pool.allocate(1)
    pool.share(pages)
    pool.release(pages)
    assert pool.num_free == 1
    pool.release(pages)
    assert pool.num_free == 2


def test_a_fork_shares_full_pages_and_copies_the_last() -> None:
    pool = PagePool(8, 4)
    prompt = pool.allocate(3)
    sample, copy = pool.fork(prompt, 10)
    assert sample[:2] == prompt[:2]
    assert copy == Copy(prompt[2], sample[2])
    pool.check_integrity([prompt, sample])


def test_a_fork_at_a_page_boundary_copies_nothing() -> None:
    pool = PagePool(2, 4)
    prompt = pool.allocate(2)
    assert pool.fork(prompt, 8) == (prompt, None)


def test_releasing_a_free_page_is_our_bug() -> None:
    pool = PagePool(2, 4)
    with pytest.raises(AssertionError, match="page 1 is free"):
        pool.release([1])


@pytest.mark.parametrize("seed", range(8))
def test_random_use_keeps_the_books(seed: int) -> None:
    rng = random.Random(seed)
    pool = PagePool(24, 4)
    held: list[list[int]] = []
    for _ in range(300):
        match rng.choice(("allocate", "fork", "release")):
            case "allocate" if pool.num_free:
                held.append(pool.allocate(rng.randint(1, min(4, pool.num_free))))
            case "fork" if held and pool.num_free:
                pages = rng.choice(held)
                held.append(pool.fork(pages, rng.randint(1, 4 * len(pages)))[0])
            case "release" if held:
                pool.release(held.pop(rng.randrange(len(held))))
        pool.check_integrity(held)
    for pages in held:
        pool.release(pages)
    assert pool.num_free == 24
