// swap_: teacher <-> student, over any number of tensors of equal dtypes, in one launch. Bits move as they
// are.
#pragma once
#include "kernel.h"
#include "plan.h"

namespace mtk {

struct Swap {
  const Plan* plan;  // rows of bytes and words
  int device;
  void* stream;  // cudaStream_t
};

void swap_cpu(const Swap& args);
#if defined(MTK_CUDA)
void swap_cuda(const Swap& args);
#else
constexpr Kernel<Swap> swap_cuda = nullptr;
#endif

}  // namespace mtk
