"""Random streams as pure functions of (seed, purpose, step ...), so that any step of a run can be redrawn."""

from typing import Literal, get_args

import numpy as np
import torch

# New ones go to the end: a purpose's place is part of its stream.
Purpose = Literal[
    "model", "labels", "unlabeled", "labeled", "view", "dropout", "teacher", "noise", "validation", "extra"
]
_PURPOSES = get_args(Purpose)


def stream_seed(seed: int, purpose: Purpose, *counters: int) -> int:
    """A 32-bit seed; SeedSequence hashes, so neighbouring seeds and counters give unrelated streams."""
    words = np.random.SeedSequence([seed, _PURPOSES.index(purpose), *counters]).generate_state(1, np.uint32)
    return int(words[0])


def generator(device: torch.device, seed: int, purpose: Purpose, *counters: int) -> torch.Generator:
    """A torch generator on `device`, at the start of the stream."""
    return torch.Generator(device).manual_seed(stream_seed(seed, purpose, *counters))
