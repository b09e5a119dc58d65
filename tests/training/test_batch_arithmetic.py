import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import UserError
from launcher.training.batch_arithmetic import Batching, batching_for
from launcher.training.data_order import TrainingKeys, epoch_order, seed_for


@given(
    processes=st.integers(1, 5),
    micro=st.integers(1, 6),
    accumulation=st.integers(1, 4),
    taken=st.integers(1, 120),
)
def test_slices_take_every_sample_of_a_batch_once(processes: int, micro: int, accumulation: int, taken: int) -> None:
    batching = Batching(batch_size=processes * micro * accumulation, num_processes=processes, micro_batch_size=micro)
    taken = min(taken, batching.batch_size)
    slices = [batching.micro_slices(taken, process) for process in range(processes)]
    assert len({len(mine) for mine in slices}) == 1
    assert len(slices[0]) <= accumulation
    places = [place for mine in slices for piece in mine for place in range(piece.start, piece.stop)]
    assert sorted(places) == list(range(taken))
    for piece in (piece for mine in slices for piece in mine):
        assert piece.stop - piece.start <= micro
        assert micro % 2 or piece.start % 2 == 0 or piece.start == taken


@given(samples=st.integers(1, 60), processes=st.integers(1, 3), epoch=st.integers(0, 3))
def test_an_epoch_takes_every_sample_once_on_any_number_of_processes(samples: int, processes: int, epoch: int) -> None:
    batching = Batching(batch_size=6 * processes, num_processes=processes, micro_batch_size=3)
    seen = []
    for process in range(processes):
        keys = TrainingKeys(samples, batching, process, seed=1)
        keys.start(epoch, 0)
        batches = list(keys)
        assert len(batches) == len(keys)
        order = epoch_order(samples, 1, epoch)
        bounds = [pair for step in range(batching.steps_per_epoch(samples)) for pair in keys.micro_batches(step)]
        for batch, (first, end) in zip(batches, bounds, strict=True):
            assert all(e == epoch for e, _ in batch)
            if end > first:
                seen += [index for _, index in batch]
                assert [index for _, index in batch] == order[first:end].tolist()
    assert sorted(seen) == list(range(samples))


def test_a_restart_in_mid_epoch_continues_the_order() -> None:
    keys = TrainingKeys(50, Batching(batch_size=8, num_processes=2, micro_batch_size=2), 1, seed=3)
    keys.start(4, 0)
    whole = list(keys)
    keys.start(4, 3)
    assert list(keys) == whole[3 * 2 :]


def test_orders_differ_by_epoch_and_seed_and_never_change() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    # Written down once: a new version of numpy or of this file must not reorder old runs.
    assert epoch_order(8, 0, 0).tolist() == ORDER
    assert seed_for("sample", 0, 1, 2) == SEED


ORDER = [0, 3, 4, 6, 7, 2, 5, 1]
SEED = 631032425169886534


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "said"),
    [
        (32, 3, None, "batch_size=30 or 33 would work, or 1, 2, 4, 8, 16, 32 processes"),
        (32, 2, 5, "1, 2, 4, 8, 16 would work"),
        (32, 1, 64, "does not divide batch_size=32"),
        (2, 4, None, "batch_size=4 would work"),
    ],
)
def test_a_remainder_is_an_error_that_names_what_works(
    batch: int, processes: int, micro: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        batching_for(batch, processes, micro)


def test_the_default_micro_batch_divides_the_share() -> None:
    assert batching_for(256, 2, None).micro_batch_size == 64
    assert batching_for(96, 2, None).micro_batch_size == 48
    assert batching_for(256, 2, None).accumulation_steps == 2
