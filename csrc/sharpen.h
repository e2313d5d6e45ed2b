// sharpen: rows of non-negative numbers p to the power 1 / T, divided by their sum:
//   sharpened_c = p_c^(1/T) / sum_k p_k^(1/T), worked out as (p_c / max_k p_k)^(1/T)
// so that no power is too large or too small for the accumulator. A row of zeros stays; one with a negative
// number is NaN. Accumulators are fp32, or fp64 where p is.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "kernel.h"

namespace mtk {

constexpr int kMaxSharpenDims = 64;  // torch has no more

struct Sharpen {
  const void* probs;
  void* sharpened;
  Dtype dtype;  // of both
  int64_t rows, classes;
  int64_t stride, sharpened_stride;  // of the classes, in elements
  int dims;                          // of the rows; the last varies fastest
  int64_t sizes[kMaxSharpenDims];
  int64_t strides[kMaxSharpenDims], sharpened_strides[kMaxSharpenDims];
  double temperature;
  int device;
  void* stream;
};

void sharpen_cpu(const Sharpen& args);
constexpr Kernel<Sharpen> sharpen_cuda = nullptr;  // on a GPU the kernel is Triton's

}  // namespace mtk
