// exp and log1p in forms that compilers vectorise.
#pragma once
#include <cmath>

#include "dtype.h"

namespace mtk {

// x where the condition holds, else 0: by masking bits, since GCC makes a branch of a select that follows
// other work.
MTK_INLINE float where(bool condition, float x) {
  return bit_cast<float>(bit_cast<uint32_t>(x) & -static_cast<uint32_t>(condition));
}
MTK_INLINE double where(bool condition, double x) {
  return bit_cast<double>(bit_cast<uint64_t>(x) & -static_cast<uint64_t>(condition));
}

// exp(x) for x <= 0, in fp32: 2^n exp(r) with n = round(x / ln 2), ln 2 in two parts, and a polynomial for
// |r| <= ln 2 / 2 that is off by 3e-9. Largest relative error 1.0e-7; 0 below -87.7; NaN stays NaN. n stands,
// plus the 127 that floats add to their exponent, in the low bits of the sum that rounds it; n = -127 makes a
// factor of 0.
MTK_INLINE float exp_nonpositive(float x) {
  constexpr float kRound =
      12582912.0f + 127.0f;  // 1.5 * 2^23: adding and taking it away rounds to an integer
  x = -88.02f > x ? -88.02f : x;
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float poly = 1.38146e-3f;
  poly = poly * r + 8.36875e-3f;
  poly = poly * r + 4.166839e-2f;
  poly = poly * r + 1.666652e-1f;
  poly = poly * r + 4.9999993e-1f;
  poly = poly * r + 1.0f;
  poly = poly * r + 1.0f;
  return poly * bit_cast<float>(bit_cast<uint32_t>(shifted) << 23);
}

MTK_INLINE double exp_nonpositive(double x) { return std::exp(x); }

// log(u) for 0 < u <= 2 with u = 1 + r, in fp32: e ln 2 + log(1 + f), where 1 + f lies in [sqrt(1/2),
// sqrt(2)). f comes from r unless u is small, so that small r lose nothing. Of 0: some finite number; of NaN:
// NaN.
MTK_INLINE float log_near(float u, float r) {
  const int32_t bits = bit_cast<int32_t>(u) - 0x3f3504f3;  // of sqrt(1/2)
  const int32_t exponent = bits >> 23;
  const float mantissa = bit_cast<float>((bits & 0x007fffff) + 0x3f3504f3);
  const float e = static_cast<float>(exponent);
  const float f = exponent == 0 ? r : exponent == 1 ? 0.5f * (r - 1.0f) : mantissa - 1.0f;
  float poly = 7.0376836292e-2f;
  poly = poly * f - 1.1514610310e-1f;
  poly = poly * f + 1.1676998740e-1f;
  poly = poly * f - 1.2420140846e-1f;
  poly = poly * f + 1.4249322787e-1f;
  poly = poly * f - 1.6668057665e-1f;
  poly = poly * f + 2.0000714765e-1f;
  poly = poly * f - 2.4999993993e-1f;
  poly = poly * f + 3.3333331174e-1f;
  const float square = f * f;
  const float tail = (poly * f * square + (e * -2.12194440e-4f + 0.0f * r)) - 0.5f * square;
  return (f + tail) + e * 0.693359375f;
}

MTK_INLINE double log_near(double u, double r) { return r > -0.5 ? std::log1p(r) : u == 0 ? 0 : std::log(u); }

}  // namespace mtk
