// logit_mse: row loss = (1/C) sum_c (a_c - b_c)^2, gradients = (2/C) (a_c - b_c) and its negative. No
// temperature, center or threshold.
#pragma once
#include "consistency.h"

namespace mtk {

void logit_mse_cpu(const Consistency& args);
#if defined(MTK_CUDA)
void logit_mse_cuda(const Consistency& args);
#else
constexpr Kernel<Consistency> logit_mse_cuda = nullptr;
#endif

}  // namespace mtk
