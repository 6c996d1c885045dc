import numpy as np

from training.data.labels import label_array, one_hot


def test_one_hot():
    rows = one_hot(np.array([2, 0]), 3)
    assert rows.dtype == np.float32 and rows.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(1, 3).tolist() == [0, 1, 0]


def test_labels_in_the_order_of_the_names():
    classes = label_array({"a": 3, "b": 1}, ["b", "a"])
    assert classes.dtype == np.int64 and classes.tolist() == [1, 3]
    vectors = label_array({"a": [0.5, 1.0]}, ["a"])
    assert vectors.dtype == np.float32 and vectors.shape == (1, 2)
