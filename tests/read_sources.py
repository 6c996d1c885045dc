"""Reading what data sets are made from, for the tests."""

import numpy as np


def read(source):
    """Decode all images of a source: (list of arrays, list of labels)."""
    images = list(source.images())
    return [np.asarray(image.load()) for image in images], [image.label for image in images]


def check(source, images, labels):
    """A source holds these images and labels, however often it is read."""
    got_images, got_labels = read(source)
    np.testing.assert_array_equal(np.stack(got_images), images)
    assert got_labels == labels
    assert [a.name for a in source.images()] == [a.name for a in source.images()]
    assert source.count() in (None, len(images))
