// nonfinite_: found <- 1 where any element of any of the tensors is infinite or NaN, else as it is, in one
// launch. The flag has the form of torch.amp.GradScaler's found_inf.
#pragma once
#include "kernel.h"
#include "plan.h"

namespace mtk {

struct Nonfinite {
  const Plan* plan;  // rows of averages, whose targets are null; others are passed over
  float* found;      // on the plan's device
  int device;
  void* stream;  // cudaStream_t
};

void nonfinite_cpu(const Nonfinite& args);
#if defined(MTK_CUDA)
void nonfinite_cuda(const Nonfinite& args);
#else
constexpr Kernel<Nonfinite> nonfinite_cuda = nullptr;
#endif

}  // namespace mtk
