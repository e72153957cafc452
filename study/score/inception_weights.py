"""Where InceptionV3's weights are, whether they are the right ones, and what they are asked for. Imports no network.

torch-fidelity unpickles the file it is given, which can run any code. So the bytes are checked against the
published sha256 and read as tensors only.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.denoiser import require

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
SOURCE = "https://github.com/toshas/torch-fidelity/releases"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

POOL, SPATIAL, LOGITS = "2048", "spatial", "logits_unbiased"
LAYERS = (POOL, SPATIAL, LOGITS)
SPATIAL_CHANNELS = 7  # of 192, times 17 x 17 places: ADM's 2023 numbers
WIDTHS = {POOL: 2048, SPATIAL: SPATIAL_CHANNELS * 17 * 17, LOGITS: 1008}


@dataclass(frozen=True)
class InceptionWeights:
    """Where to look first, and what must be found there. Another sha256 means another network, and other numbers."""

    path: str | None = None
    sha256: str = SHA256

    def candidates(self) -> list[Path]:
        """The configured path if there is one, then torch's hub cache."""
        cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME
        return [Path(self.path), cached] if self.path else [cached]

    def missing(self) -> str | None:
        """Why there are no weights, and what to put where; None if the file is there and is the right one."""
        found = next((path for path in self.candidates() if path.is_file()), None)
        if found is None:
            place = f"put {FILE_NAME} (sha256 {self.sha256}) at {self.candidates()[0]}"
            return f"Inception weights not found: {place}; {SOURCE} has it"
        if (digest := digest_of(found.read_bytes())) != self.sha256:
            return f"{found} has sha256 {digest}: must be {self.sha256} ({FILE_NAME})"
        return None

    def read(self) -> dict[str, Tensor]:
        """The state dict, out of the very bytes whose checksum was taken; nothing in them is executed."""
        reason = self.missing()
        if reason:
            raise ValueError(reason)
        path = next(path for path in self.candidates() if path.is_file())
        content = path.read_bytes()
        require(digest_of(content) == self.sha256, str(path), digest_of(content), f"sha256 {self.sha256}")
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a file of weights: {str(error).splitlines()[0]}") from error
        tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
        require(tensors, str(path), type(state).__name__, "a state dict of tensors")
        return state


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
