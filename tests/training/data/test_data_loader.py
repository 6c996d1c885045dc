import errno
import gc
import multiprocessing
import os
import pickle
import re
import signal
import traceback

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests import make_data, tiny
from torch_utils.distributed import SIGNALS
from training.data.data_loader import RealImages, ignore_signals
from training.data.sampler import InfiniteSampler
from training.dataset import DatasetError, ImageFolderDataset

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path):
    return ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"), use_labels=True)


def loader(dataset, start=0, **options):
    images = RealImages(dataset, tiny.config(cond=True, **options), CPU)
    images.load_state_dict({"position": start, "damaged": []})
    return images


def take(dataset, count, **options):
    with loader(dataset, **options) as batches:
        return [next(batches) for _ in range(count)]


def test_batches_follow_the_sampler(dataset):
    order = iter(InfiniteSampler(len(dataset), seed=3))
    for images, labels in take(dataset, 4, seed=3):
        assert images.shape == (8, 1, 8, 8) and images.dtype == torch.float32
        for image, label in zip(images, labels, strict=True):
            pixels, expected = dataset[next(order)]
            np.testing.assert_allclose(image.numpy(), pixels / 127.5 - 1, atol=1e-6)
            np.testing.assert_array_equal(label.numpy(), expected)


def test_images_span_minus_one_to_one(tmp_path):
    extremes = np.zeros((2, 8, 8), np.uint8)
    extremes[:, 4:] = 255
    files = make_data.archive_files(extremes)
    data = ImageFolderDataset(make_data.write_zip(tmp_path / "e.zip", files))
    ((images, labels),) = take(data, 1, batch=2)
    assert (images.min().item(), images.max().item()) == (-1, 1)
    assert labels.shape == (2, 0)


@tiny.starts_workers
def test_a_stream_can_be_taken_up_where_it_was_left(dataset):
    whole = take(dataset, 5)
    with loader(dataset, workers=1) as batches:  # which holds some more ready
        for _ in range(3):
            next(batches)
    rest = take(dataset, 2, start=batches.state_dict()["position"])
    for (images, labels), (again, labels_again) in zip(whole[3:], rest, strict=True):
        assert torch.equal(images, again) and torch.equal(labels, labels_again)


def test_each_process_loads_its_share_of_the_batch(dataset):
    ((images, _),) = take(dataset, 1, batch=16, gpus=2)
    assert len(images) == 8


def test_three_workers_on_any_machine(dataset):
    loader(dataset, workers=3)  # PyTorch's advice on machines of fewer cores would be an error here


@tiny.starts_workers
def test_workers_change_nothing_and_end_with_the_context(dataset):
    torch.testing.assert_close(take(dataset, 4), take(dataset, 4, workers=2), rtol=0, atol=0)
    assert not multiprocessing.active_children()


@tiny.starts_workers
@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_named(tmp_path, workers):
    files = make_data.archive_files(make_data.pixels(8, 8, 1))
    name = "00000/img00000003.png"
    files[name] = files[name][:45]  # the header is whole
    data = ImageFolderDataset(make_data.write_folder(tmp_path, files))
    with pytest.raises(DatasetError, match=f"'{name}' in .* cannot be decoded") as caught:
        take(data, 1, workers=workers)
    assert caught.value.__traceback__ and not multiprocessing.active_children()


def test_more_workers_than_cores_is_no_reason_to_warn(tmp_path, recwarn):
    dataset = ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"))
    with RealImages(dataset, tiny.config(workers=(os.cpu_count() or 1) + 1), CPU) as data:
        next(data)
    assert not [w for w in recwarn if "DataLoader" in str(w.message)]


def notice_deaths_soon(monkeypatch):
    """PyTorch looks every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@tiny.starts_workers
def test_workers_that_die_are_started_again(dataset, caplog, monkeypatch):
    notice_deaths_soon(monkeypatch)
    expected = take(dataset, 6)
    with loader(dataset, workers=1) as batches:
        drawn = [next(batches)]
        random_numbers = torch.get_rng_state()
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        drawn += [next(batches) for _ in range(5)]
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)
    assert "DataLoader worker" in caplog.text and "Starting the workers again." in caplog.text
    assert torch.equal(torch.get_rng_state(), random_numbers)


class Faulty(torch.utils.data.Dataset):
    """A data set of which no image can be had."""

    label_dim = 0
    has_onehot_labels = False
    raw_labels = np.zeros([8, 0], np.float32)

    def __len__(self):
        return 8

    def __init__(self, fault):
        self._fault = fault

    def __getitem__(self, index):
        self._fault()


def exit_in_worker():
    os._exit(1)


def killed_in_worker():
    os.kill(os.getpid(), signal.SIGKILL)


def no_room_in_worker():
    gc.collect()  # what is left of workers before this one would be ended by it
    raise RuntimeError(
        "unable to resize file </torch_1_2_0> to the right size: File too large (27)"
    )


@pytest.mark.slow
@tiny.starts_workers
@pytest.mark.parametrize("fault", [exit_in_worker, killed_in_worker, no_room_in_worker])
def test_workers_that_die_again_and_again(monkeypatch, caplog, capfd, fault):
    notice_deaths_soon(monkeypatch)
    with RealImages(Faulty(fault), tiny.config(workers=1), CPU) as batches:
        with pytest.raises(DatasetError, match="have died 3 times in a row.*fewer --workers, or 0"):
            next(batches)
    assert len(caplog.records) == 3
    assert "can only test a child process" not in capfd.readouterr().err


def bug_in_worker():
    raise RuntimeError("a DataLoader worker (pid 1) exited unexpectedly, says a bug")


def memory_short_in_worker():
    raise MemoryError("of the image")


@tiny.starts_workers
@pytest.mark.parametrize("fault", [bug_in_worker, memory_short_in_worker])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_comes_through_with_its_traceback(caplog, fault, workers):
    with RealImages(Faulty(fault), tiny.config(workers=workers), CPU) as batches:
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            next(batches)
    told = "".join(traceback.format_exception(caught.value))
    assert fault.__name__ in told and not isinstance(caught.value, DatasetError)
    assert not multiprocessing.active_children()
    assert not caplog.records, "nothing is started again"


# As PyTorch words them: of one worker by its signal handler, of several by its loader.
DEATHS = (
    "DataLoader worker (pid 4711) is killed by signal: Killed. ",
    "DataLoader worker (pid 4711) exited unexpectedly with exit code 1. Details are lost due to "
    "multiprocessing. Rerunning with num_workers=0 may give better error trace.",
    "DataLoader worker (pid(s) 4711, 4712) exited unexpectedly",
)
NO_SHARED_MEMORY = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
    "last):\n  ...\nRuntimeError: unable to {}\n"
)
SHORT = (
    *(RuntimeError(text) for text in DEATHS),
    *(
        RuntimeError(NO_SHARED_MEMORY.format(what))
        for what in (
            "resize file </torch_8506_79556129_0> to the right size: File too large (27)",
            "open shared memory object </torch_8_7_0> in read-write mode: Too many open files (24)",
            "mmap 1024 bytes from file <torch_8_7_0>: Cannot allocate memory (12)",
        )
    ),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),  # killed while it sends
    EOFError(),
    OSError("got end of file during message"),
    RuntimeError("Pin memory thread exited unexpectedly"),
)
ERRORS = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
    "last):\n  ...\nRuntimeError: DataLoader worker (pid 1) exited unexpectedly",
    "DataLoader timed out after 5 seconds",
    "CUDA error: out of memory",
    "unable to find an engine to execute this computation",
)


def failing(error):
    raise error
    yield


@tiny.starts_workers
@pytest.mark.parametrize("error", SHORT, ids=lambda error: str(error)[-60:])
def test_workers_are_started_again(dataset, caplog, error):
    expected = take(dataset, 1)[0]
    with loader(dataset, workers=1) as batches:
        batches._batches = failing(error)
        assert all(map(torch.equal, next(batches), expected))
    assert (str(error).strip().splitlines() or ["EOFError"])[-1] in caplog.text
    assert "Starting the workers again." in caplog.text


@tiny.starts_workers
@pytest.mark.parametrize("error", [*map(RuntimeError, ERRORS), OSError("Caught OSError in ...")])
def test_errors_are_told_from_deaths(dataset, error):
    with loader(dataset, workers=1) as batches:
        batches._batches = failing(error)
        with pytest.raises(type(error), match=re.escape(str(error))):
            next(batches)


def test_without_workers_none_are_started_again(dataset):
    with loader(dataset) as batches:
        batches._batches = failing(OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError, match="Input/output"):
            next(batches)


@tiny.starts_workers
def test_workers_that_cannot_be_started_again(dataset, caplog, monkeypatch):
    def open_fails(_self):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with loader(dataset, workers=1) as batches:
        monkeypatch.setattr(RealImages, "_open", open_fails)
        batches._batches = failing(RuntimeError(DEATHS[0]))
        with pytest.raises(DatasetError, match="have died 3 times in a row.*--shm-size"):
            next(batches)
    assert len(caplog.records) == 3


@tiny.starts_workers
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_left_out_and_named_once(tmp_path, caplog, workers):
    files = make_data.archive_files(make_data.pixels(100, 8, 1))
    name = "00000/img00000003.png"
    files[name] = files[name][:45]
    data = ImageFolderDataset(make_data.write_folder(tmp_path, files))
    with RealImages(data, tiny.config(workers=workers, batch=100), CPU) as batches:
        images = [next(batches)[0] for _ in range(2)]
    [record] = caplog.records
    assert record.getMessage().startswith(f"Warning: an image is left out (1 so far): '{name}' in")
    order = iter(InfiniteSampler(100))
    for image, index in zip(images[0], order, strict=False):
        expected, _ = data[4 if index == 3 else index]
        np.testing.assert_allclose(image.numpy(), expected / 127.5 - 1, atol=1e-6)
    assert batches.state_dict()["position"] == 200
    again = RealImages(data, tiny.config(workers=workers, batch=100), CPU)
    again.load_state_dict(batches.state_dict())
    with again:
        next(again)
    assert len(caplog.records) == 1, "a run that goes on does not name it again"


def test_a_batch_that_is_held_ready_is_not_taken(dataset):
    expected = take(dataset, 2)
    with loader(dataset) as batches:
        batches.draw_ahead()
        batches.draw_ahead()
        assert batches.state_dict()["position"] == 0 and batches.pending_damage == []
        for batch in expected:
            assert all(map(torch.equal, next(batches), batch))
        assert batches.state_dict()["position"] == 16


def test_processes_learn_from_each_other_what_is_damaged(tmp_path, caplog):
    data = ImageFolderDataset(tiny.write_data(tmp_path / "many.zip", count=300))
    first, other = (RealImages(data, tiny.config(gpus=2, batch=8), CPU, rank) for rank in (0, 1))
    for process in (first, other):
        process.merge_damage([["a is damaged"], ["b is damaged", "a is damaged"]])
    known = ["a is damaged", "b is damaged"]
    assert first.state_dict()["damaged"] == other.state_dict()["damaged"] == known
    assert len(caplog.records) == 2, "the first one speaks for all"
    for process in (first, other):
        with pytest.raises(DatasetError, match="^4 of 300 images are damaged, the latest: d$"):
            process.merge_damage([["c"], ["d"]])
    again = loader(data)
    again.load_state_dict(first.state_dict())
    with pytest.raises(DatasetError, match="^4 of 300"):  # starting again is no way around
        again.merge_damage([["d"]])


def test_one_process_without_a_batch_ends_all(dataset, monkeypatch):
    def fail(_self):
        raise DatasetError("nothing can be read")

    alone, other = loader(dataset), loader(dataset)
    monkeypatch.setattr(RealImages, "_draw", fail)
    alone.draw_ahead()
    news = pickle.loads(pickle.dumps([[], alone.pending_damage]))  # as between processes
    for process in (alone, other):
        with pytest.raises(DatasetError, match="^nothing can be read$"):
            process.merge_damage(news)


def test_workers_leave_signals_to_the_trainer():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ignore_signals(0)
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
