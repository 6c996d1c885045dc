"""Small data sets in every published format, made on the spot for the tests."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import PIL.Image


def pixels(count, size, channels=3, seed=0):
    """Random images, uint8 [count, size, size, channels], or [count, size, size] for grey."""
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def encode(image, fmt="png", **options):
    """Encode an array or Pillow image."""
    buffer = io.BytesIO()
    image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def write_folder(folder, files):
    """Write files {name: bytes} below a folder and return its path as a string."""
    for name, data in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    return str(folder)


def write_zip(path, files):
    """Write files {name: bytes} as a stored zip and return its path as a string."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def archive_files(images, labels=None):
    """Lay arrays out as a dataset archive: {name: bytes}."""
    names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(images))]
    files = {name: encode(image) for name, image in zip(names, images, strict=True)}
    pairs = None if labels is None else [list(p) for p in zip(names, labels, strict=True)]
    files["dataset.json"] = json.dumps({"labels": pairs}).encode()
    return files


def planar_rows(images):
    """Flatten [N, S, S, 3] as CIFAR does: rows of a red, a green and a blue plane."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def write_tar(path, members):
    """Write members {name: bytes} as a gzipped tarball and return its path as a string."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def write_cifar10(path, images, labels):
    """Split images over data_batch_1..5 in a tarball ordered like the published one."""
    batches = {}
    for number in (4, 3, 2, 5, 1):
        part = np.array_split(np.arange(len(images)), 5)[number - 1]
        content = {"data": planar_rows(images[part]), "labels": [labels[i] for i in part]}
        batches[f"cifar-10-batches-py/data_batch_{number}"] = pickle.dumps(content, protocol=2)
    batches["cifar-10-batches-py/test_batch"] = b"is not read"
    return write_tar(path, batches)


def write_cifar100(path, images, fine, coarse):
    """Write the training images of a CIFAR-100 tarball."""
    content = {"data": planar_rows(images), "fine_labels": fine, "coarse_labels": coarse}
    data = pickle.dumps(content, protocol=2)
    return write_tar(path, {"cifar-100-python/train": data, "cifar-100-python/test": b"unread"})


def python2_batch(images, labels):
    """Pickle a batch by hand as Python 2 and its NumPy did, byte strings and all."""

    def text(value):
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value):
        return b"J" + value.to_bytes(4, "little", signed=True)

    rows = planar_rows(images)
    dtype = b"cnumpy\ndtype\n" + b"(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t"
    array += text(b"b") + b"tR(" + number(1) + b"(" + number(rows.shape[0])
    array += number(rows.shape[1]) + b"t" + dtype + b"I00\n" + text(rows.tobytes()) + b"tb"
    items = text(b"data") + array + text(b"labels") + b"("
    items += b"".join(map(number, labels)) + b"l"
    return b"\x80\x02}(" + items + b"u."


def write_mnist(folder, images, labels):
    """Write grey images [N, S, S] and labels as IDX files; return the path of the images."""
    header = b"\x00\x00\x08\x03" + np.array(images.shape, ">u4").tobytes()
    path = os.path.join(folder, "train-images-idx3-ubyte.gz")
    with gzip.open(path, "wb") as file:
        file.write(header + images.tobytes())
    with gzip.open(path.replace("images-idx3", "labels-idx1"), "wb") as file:
        file.write(b"\x00\x00\x08\x01" + np.array([len(labels)], ">u4").tobytes())
        file.write(np.array(labels, np.uint8).tobytes())
    return path


def imagenet_batch(images, labels, npz=False):
    """Encode one batch of downsampled ImageNet; labels count from 1."""
    content = {"data": planar_rows(images), "labels": labels, "mean": np.zeros(3, np.float64)}
    buffer = io.BytesIO()
    if npz:
        np.savez(buffer, data=content["data"], labels=np.array(labels))
    else:
        pickle.dump(content, buffer, protocol=3)
    return buffer.getvalue()
