// A bf16 or fp16 average with a low-order part of 16 bits beside it. bf16: the two are the halves of an fp32
// number, exactly. fp16: the rest in fp16, times 2048: 22 bits together.
#pragma once
#include "dtype.h"

namespace mtk {

MTK_INLINE float joined(bfloat16_bits high, uint16_t low) {
  // The high part was rounded to nearest, ties away from zero: the low one is what is missing, with a sign.
  return bit_cast<float>((static_cast<uint32_t>(high.bits) << 16) +
                         static_cast<uint32_t>(static_cast<int32_t>(static_cast<int16_t>(low))));
}

MTK_INLINE void split(float x, bfloat16_bits* high, uint16_t* low) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const bool special = (bits & 0x7f800000u) == 0x7f800000u;
  const uint32_t top = (bits + 0x8000u) >> 16;
  high->bits = static_cast<uint16_t>(special ? (x != x ? 0x7fc0u : bits >> 16) : top);
  *low = static_cast<uint16_t>(special ? 0u : bits);  // bits - (top << 16), as 16 bits
}

MTK_INLINE float joined(half_bits high, uint16_t low) {
  return widen(high) + widen(half_bits{low}) * (1.0f / 2048.0f);
}

MTK_INLINE void split(float x, half_bits* high, uint16_t* low) {
  half_bits rounded, rest;
  store(&rounded, x);
  const float missing = (x - widen(rounded)) * 2048.0f;
  // Nothing beside infinity and NaN. By masking: GCC would make a branch of the select.
  const uint32_t finite = -static_cast<uint32_t>(missing - missing == 0.0f);
  store(&rest, bit_cast<float>(bit_cast<uint32_t>(missing) & finite));
  *high = rounded;
  *low = rest.bits;
}

}  // namespace mtk
