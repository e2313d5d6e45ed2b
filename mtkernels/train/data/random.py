"""Random numbers that are a pure function of (seed, epoch, sample, view): Philox 4x32-10, as csrc/philox.h has it.

No state: a row's numbers are the same in any batch, order, worker, rank and on any device. Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", 2011.
"""

import math

import torch
from torch import Tensor

GEOMETRY, COLOR, ERASE, OPERATIONS, NOISE = range(
    5
)  # streams, so that one policy's numbers do not move another's
_MASK = 0xFFFFFFFF


def uniforms(
    seed: int, samples: Tensor, epochs: Tensor, *, view: int | Tensor, count: int, stream: int = 0
) -> Tensor:
    """float32 in [0, 1), multiples of 2**-24, of shape [rows, count]; of [views, rows, count] for views [views, 1].

    samples: integers [rows], 64 bits count. epochs: integers [rows], 32 bits count. view and stream: 0 to 255.
    The counter's words are sample low, epoch, sample high, and stream << 24 | view << 16 | block; the key is `seed`.
    """
    return (_words(seed, samples, epochs, view, count, stream) >> 8).float() * 2.0**-24


def normals(
    seed: int, samples: Tensor, epochs: Tensor, *, view: int | Tensor, count: int, stream: int = 0
) -> Tensor:
    """Like `uniforms`, of the standard normal distribution (Box-Muller); between devices the last bit may differ."""
    words = _words(seed, samples, epochs, view, count + count % 2, stream).double().add(0.5) * 2.0**-32
    radius, angle = (-2 * words[..., 0::2].log()).sqrt(), 2 * math.pi * words[..., 1::2]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-2)[..., :count].float()


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Tensor:
    """[..., 4] words below 2**32 in int64, of counter words below 2**32 in int64 that have one shape."""
    lane = torch.arange(2, device=counter[0].device).view(2, *[1] * counter[0].dim())
    multiplier = 0xD2511F53 + lane * (0xCD9E8D57 - 0xD2511F53)
    even, odd = torch.stack([counter[0], counter[2]]), torch.stack([counter[1], counter[3]])
    for number in range(10):
        k0, k1 = (seed + number * 0x9E3779B9) & _MASK, ((seed >> 32) + number * 0xBB67AE85) & _MASK
        product = even * multiplier  # int64 wraps around: all 64 bits are right, the sign is not
        even = (product >> 32 & _MASK).flip(0) ^ odd ^ (k0 + lane * (k1 - k0))
        odd = (product & _MASK).flip(0)
    return torch.stack([even[0], odd[0], even[1], odd[1]], -1)


def _words(seed: int, samples: Tensor, epochs: Tensor, view: int | Tensor, count: int, stream: int) -> Tensor:
    if not (isinstance(view, Tensor) or 0 <= view < 256) or not 0 <= stream < 256:
        raise ValueError(f"uniforms: view and stream must be 0 to 255, got {view} and {stream}")
    blocks = -(-count // 4)
    if blocks > 1 << 16:
        raise ValueError(f"uniforms: count must be at most {4 << 16}, got {count}")
    samples, epochs = samples.long().unsqueeze(-1), epochs.long().unsqueeze(-1)
    view = view.long().unsqueeze(-1) if isinstance(view, Tensor) else view
    place = torch.arange(blocks, device=samples.device) | view << 16 | stream << 24
    words = philox(
        torch.broadcast_tensors(samples & _MASK, epochs & _MASK, samples >> 32 & _MASK, place), seed
    )
    return words.flatten(-2)[..., :count]
