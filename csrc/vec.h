// exp in a form that compilers vectorise.
#pragma once
#include <cmath>

#include "dtype.h"

namespace mtk {

// exp(x) for x <= 0, in fp32: 2^n * exp(r) with n = round(x / ln 2), ln 2 in two parts, and a polynomial for
// |r| <= ln 2 / 2. Largest relative error 8.3e-8; 0 below -87.33, where the result would be subnormal; NaN
// stays NaN.
MTK_INLINE float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and taking it away rounds to an integer
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  poly = poly * r * r + r + 1.0f;
  const float power = bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < -87.33f ? 0.0f : poly * power;
}

MTK_INLINE double exp_nonpositive(double x) { return std::exp(x); }

// x where the condition holds, else 0: by masking bits, since GCC makes a branch of a select that follows
// other work.
MTK_INLINE float where(bool condition, float x) {
  return bit_cast<float>(bit_cast<uint32_t>(x) & -static_cast<uint32_t>(condition));
}
MTK_INLINE double where(bool condition, double x) {
  return bit_cast<double>(bit_cast<uint64_t>(x) & -static_cast<uint64_t>(condition));
}

}  // namespace mtk
