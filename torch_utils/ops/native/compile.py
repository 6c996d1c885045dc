"""Compile the native operators through PyTorch: a process of its own, started by build.py.

    python -m torch_utils.ops.native.compile JSON

JSON holds arguments of `torch.utils.cpp_extension.load`. The library is loaded at once, so that
one that cannot be is never kept, and what goes wrong then does not take down the user's program.
"""

import json
import sys

from torch.utils import cpp_extension

if __name__ == "__main__":
    cpp_extension.load(**json.loads(sys.argv[1]), is_python_module=False, verbose=True)
