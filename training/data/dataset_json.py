"""dataset.json at the root of a folder or zip: labels, and how the archive was made.

Nothing here imports torch, so that dataset_tool.py starts fast.
"""

import json
from typing import Any

from dnnlib.util import first_line
from training.data.image_files import DatasetError, FileStore, read_file
from training.data.labels import MAX_CLASSES, Label

_NAME = "dataset.json"
_MAX_FLOAT32 = 3.4e38


def read_labels(store: FileStore) -> dict[str, Label] | None:
    """Read the labels of dataset.json at the root.

    Returns:
        Labels by file name, or None where there is no dataset.json or its labels are null. All are
        integers >= 0, or all are lists of equally many finite numbers.

    Raises:
        DatasetError: They are something else, or cannot be read.
    """
    if not _is_in(store):
        return None
    content = _read(store)
    where = _where(store)
    if not isinstance(content, dict):
        raise DatasetError(f'{where} must be an object like {{"labels": [["NAME", 6], ...]}}.')
    labels = content.get("labels")
    if labels is None:
        return None
    if not isinstance(labels, list) or not all(map(_is_labelled_name, labels)):
        raise DatasetError(f'{where}: "labels" must be null or a list of ["NAME", LABEL] pairs.')
    by_name = {name.replace("\\", "/"): label for name, label in labels}
    _check_labels(by_name, where)
    return by_name


def _check_labels(labels: dict[str, Label], where: str) -> None:
    kinds = set()
    for name, label in labels.items():
        kind = _label_kind(label)
        if kind is None:
            raise DatasetError(
                f"{where}: the label of '{name}' is {json.dumps(label)[:40]}; it must be an "
                f"integer from 0 to {MAX_CLASSES - 1} or a list of finite numbers."
            )
        kinds.add(kind)
        if len(kinds) > 1:
            raise DatasetError(
                f"{where} mixes kinds of labels (see '{name}'): they must be all integers or "
                "all lists of the same length."
            )


def _label_kind(label: object) -> str | int | None:
    """Return "class", the length of a vector, or None for what is no label."""
    if isinstance(label, int) and not isinstance(label, bool):
        return "class" if 0 <= label < MAX_CLASSES else None
    if isinstance(label, list) and label and all(map(_is_finite_number, label)):
        return len(label)
    return None


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _MAX_FLOAT32  # false for NaN


def _is_labelled_name(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def read_meta(store: FileStore) -> dict[str, Any]:
    """Read what dataset_tool.py has recorded about an archive; empty where it did not make it.

    What is damaged counts as not recorded: `read_labels` says so where it matters.
    """
    if not _is_in(store):
        return {}
    try:
        content = _read(store)
    except DatasetError:
        return {}
    meta = content.get("meta") if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) else {}


def _is_in(store: FileStore) -> bool:
    return store.exists(_NAME)


def _read(store: FileStore) -> Any:
    try:
        return json.loads(read_file(store, _NAME))
    except Exception as error:  # unpacking and parsing can raise anything on damaged data
        raise DatasetError(f"{_where(store)} cannot be read: {first_line(error)}.") from error


def _where(store: FileStore) -> str:
    return f"{_NAME} in '{store.path}'"
