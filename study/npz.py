"""npz archives from anywhere: their arrays, or one line; nothing in them is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_npz_file(path: Path) -> dict[str, NDArray[Any]]:
    """Every array by name; a ValueError of one line if it cannot be, or if a member is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            members = dict(file)
    except Exception as error:  # numpy, zipfile and zlib make a dozen kinds of a damaged archive
        raise ValueError(f"{path} cannot be read as npz: {next(iter(str(error).splitlines()), 'damaged')}") from error
    strange = next((name for name, member in members.items() if not isinstance(member, np.ndarray)), None)
    if strange is not None:
        raise ValueError(f"{path} cannot be read as npz: {strange} in it is no array")
    return members
