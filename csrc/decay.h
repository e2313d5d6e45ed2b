// Schedules of the decay: decay(t) at step t = 1, 2, ... of an average, in double precision, the same on host
// and device. mtkernels/schedules.py has each with its source.
#pragma once
#include <cmath>
#include <cstdint>

#include "dtype.h"

namespace mtk {

// The numbers are shared with mtkernels/schedules.py and Triton's kernel.
enum class DecayKind : int32_t {
  constant = 0,       // a
  running_mean = 1,   // min(1 - 1 / (t + 1), a)
  ratio = 2,          // min((1 + t) / (b + t), a)
  inverse_gamma = 3,  // 1 - (1 + t / b)^-c, kept within [d, a]
  switched = 4,       // c while t < b, then a
  cosine = 5,         // 1 - (1 - a) * (cos(pi * min(t / b, 1)) + 1) / 2
  half_life = 6,      // 2^(-1 / min(a, b * t))
  power = 7,          // (1 - 1 / t)^(a + 1)
  debiased = 8,       // (a - a^t) / (1 - a^t): what makes an average that starts at zero an unbiased one
  live = 9,           // a number in memory, read when the kernel runs
};
constexpr double kPi = 3.14159265358979323846;

struct Decay {
  DecayKind kind;
  Dtype dtype;  // of data: f32 or f64
  double a, b, c, d;
  const void* data;  // live: on the weights' device

  MTK_INLINE double at(double t) const {
    switch (kind) {
      case DecayKind::running_mean:
        return fmin(1.0 - 1.0 / (t + 1.0), a);
      case DecayKind::ratio:
        return fmin((1.0 + t) / (b + t), a);
      case DecayKind::inverse_gamma:
        return fmin(fmax(1.0 - pow(1.0 + t / b, -c), d), a);
      case DecayKind::switched:
        return t < b ? c : a;
      case DecayKind::cosine:
        return 1.0 - (1.0 - a) * (cos(kPi * fmin(t / b, 1.0)) + 1.0) / 2.0;
      case DecayKind::half_life:
        return exp2(-1.0 / fmin(a, b * t));
      case DecayKind::power:
        return pow(1.0 - 1.0 / t, a + 1.0);
      case DecayKind::debiased:
        return (a - pow(a, t)) / (1.0 - pow(a, t));
      case DecayKind::live:
        return dtype == Dtype::f64 ? *static_cast<const double*>(data)
                                   : static_cast<double>(*static_cast<const float*>(data));
      default:
        return a;
    }
  }
};

}  // namespace mtk
