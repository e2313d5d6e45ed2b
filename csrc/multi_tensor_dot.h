// multi_tensor_dot: dot = sum over all pairs of tensors, and over their elements, of first * second, in one
// launch. With norms, from the same read: first_norm = sqrt(sum first^2), second_norm = sqrt(sum second^2).
// Products and sums are fp64, whatever the tensors' dtypes; the sums are taken in one order, for any number
// of threads.
#pragma once
#include "kernel.h"
#include "plan.h"

namespace mtk {

struct MultiTensorDot {
  const Plan* plan;  // rows of pairs, as averages: dst the first, src the second
  double* sums;      // dot; with norms dot, first_norm, second_norm
  bool with_norms;
  int device;
  void* stream;
};

void multi_tensor_dot_cpu(const MultiTensorDot& args);
constexpr Kernel<MultiTensorDot> multi_tensor_dot_cuda = nullptr;  // on a GPU the kernel is Triton's

}  // namespace mtk
