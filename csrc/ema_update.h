// ema_update: teacher <- decay * teacher + (1 - decay) * student, over any number of tensors, in one launch.
// Computed as teacher + (1 - decay) * (student - teacher), or from the student's side where decay < 1/2, so
// that equal weights stay equal and decay = 0 gives the student. fp32 accumulator (fp64 where the teacher or
// the student is fp64).
#pragma once
#include "kernel.h"
#include "plan.h"

namespace mtk {

struct EmaUpdate {
  const Plan* plan;
  double decay;  // in [0, 1]; read where decay_data is null
  const void*
      decay_data;     // a 0-d tensor on the plan's device, which the kernel reads: live in a captured graph
  Dtype decay_dtype;  // f32 or f64
  int device;
  void* stream;  // cudaStream_t
};

void ema_update_cpu(const EmaUpdate& args);
#if defined(MTK_CUDA)
void ema_update_cuda(const EmaUpdate& args);
#else
constexpr Kernel<EmaUpdate> ema_update_cuda = nullptr;
#endif

}  // namespace mtk
