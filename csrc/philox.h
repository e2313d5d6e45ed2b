// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), the generator of torch
// and Triton too, and rounding by it. The bits of element i of a table are the (i % 8)-th 16 of the counter
// (i / 8, average, step) under the seed: the same on every backend, for any number of threads or blocks.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace mtk {

// Numbers below 2^32. The CPU's vectors hold them in lanes of 64 bits, as wide as the products are: 6 times
// as fast.
template <class Lane>
struct Philox {
  Lane word[4];
};

struct RandomKey {
  uint64_t seed;
  uint64_t step;
};

template <class Lane>
MTK_INLINE Philox<Lane> philox(uint64_t group, int average, RandomKey random) {
  constexpr uint64_t kLow = 0xFFFFFFFFu;
  Lane c0 = static_cast<Lane>(group & kLow);
  Lane c1 = static_cast<Lane>(group >> 32 | static_cast<uint64_t>(average) << 24);
  Lane c2 = static_cast<Lane>(random.step & kLow), c3 = static_cast<Lane>(random.step >> 32);
  Lane k0 = static_cast<Lane>(random.seed & kLow), k1 = static_cast<Lane>(random.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<Lane>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<Lane>(p1 & kLow);
    c2 = static_cast<Lane>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<Lane>(p0 & kLow);
    k0 = (k0 + 0x9E3779B9u) & static_cast<Lane>(kLow);
    k1 = (k1 + 0xBB67AE85u) & static_cast<Lane>(kLow);
  }
  return {{c0, c1, c2, c3}};
}

// Rounded up with the probability of the fraction that is cut off, else down, in magnitude: the mean is x.
// `random` has 16 bits. Infinities and NaN stay; what would round past the largest number stays the largest.
MTK_INLINE void store_stochastic(bfloat16_bits* to, float x, uint32_t random) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + random) >> 16;
  const uint32_t finite = (rounded & 0x7fffu) == 0x7f80u ? (bits >> 16) : rounded;
  const uint32_t special = x != x ? 0x7fc0u : bits >> 16;
  to->bits = static_cast<uint16_t>((bits & 0x7f800000u) == 0x7f800000u ? special : finite);
}

MTK_INLINE void store_stochastic(half_bits* to, float x, uint32_t random) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  // 13 bits are cut off a normal half. A subnormal one counts in units of 2^-24: the float x * 2^24 < 1024 is
  // cut to an integer after 16 random bits have been added to its fraction, all of it exact in 40 bits of
  // fixed point.
  const uint32_t normal = (magnitude - (112u << 23) + (random >> 3)) >> 13;
  const float scaled = bit_cast<float>(magnitude) * 16777216.0f * 65536.0f;  // < 2^26
  const uint32_t small = magnitude < (113u << 23) ? 1u : 0u;
  const uint32_t fixed = static_cast<uint32_t>(static_cast<int32_t>(small ? scaled : 0.0f));
  const uint32_t finite = small ? (fixed + random) >> 16 : normal;
  const uint32_t kept = finite > 0x7bffu ? 0x7bffu : finite;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // 65520 and more has no half next to it on the upper side that is finite: as rounding to nearest has it,
  // infinity.
  to->bits = static_cast<uint16_t>((magnitude >= 0x477ff000u ? special : kept) | sign);
}

}  // namespace mtk
