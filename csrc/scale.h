// scale: x <- factor * x, in place, for a factor on the device. Where the factor is 1 nothing is read or
// written: what makes the backward of a loss free when its incoming gradient is 1, without the host having to
// know.
#pragma once
#include "dtype.h"
#include "kernel.h"

namespace mtk {

struct Scale {
  void* data;  // [count], dense
  Dtype dtype;
  int64_t count;
  const void* factor;  // one element, on the device of data
  Dtype factor_dtype;  // f32 or f64
  int device;
  void* stream;
};

void scale_cpu(const Scale& args);
#if defined(MTK_CUDA)
void scale_cuda(const Scale& args);
#else
constexpr Kernel<Scale> scale_cuda = nullptr;
#endif

}  // namespace mtk
