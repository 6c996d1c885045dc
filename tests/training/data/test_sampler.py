from itertools import islice

import pytest

from training.data.sampler import InfiniteSampler


def draw(count, *args, **kwargs):
    return list(islice(InfiniteSampler(*args, **kwargs), count))


def test_every_epoch_is_another_permutation():
    stream = draw(30, 10, seed=3)
    epochs = [stream[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert stream == draw(30, 10, seed=3) != draw(30, 10, seed=4)
    assert draw(25, 10, shuffle=False) == [*range(10), *range(10), *range(5)]
    # Runs resume in this order, whatever version they were started with.
    assert draw(10, 10, seed=0) == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 1234])
def test_a_stream_resumes_at_any_position(start):
    assert draw(20, 10, seed=1, start=start) == draw(start + 20, 10, seed=1)[start:]


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("replicas", [1, 2, 3, 16])
def test_replicas_share_the_stream(replicas, start):
    parts = [
        draw(5, 10, rank=rank, num_replicas=replicas, seed=1, start=start)
        for rank in range(replicas)
    ]
    interleaved = [index for row in zip(*parts, strict=True) for index in row]
    assert interleaved == draw(5 * replicas, 10, seed=1, start=start)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dataset_size": 0},
        {"dataset_size": 5, "rank": 1},
        {"dataset_size": 5, "rank": -1},
        {"dataset_size": 5, "seed": -1},
        {"dataset_size": 5, "start": -1},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="InfiniteSampler needs"):
        InfiniteSampler(**arguments)
