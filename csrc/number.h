// A number that may be known on the host or lie on the device, where it stays live in a captured graph.
#pragma once
#include "dtype.h"

namespace mtk {

struct Number {
  double value;      // where data is null
  const void* data;  // one fp32 or fp64, on the device of the logits
  Dtype dtype;

  MTK_INLINE double get() const {
    if (!data) return value;
    return dtype == Dtype::f64 ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
  }
};

}  // namespace mtk
