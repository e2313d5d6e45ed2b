// softmax_mse: row loss = (1/C) sum_c (p_c - q_c)^2, gradients = (2/C) p_c ((p_c - q_c) - sum_k p_k (p_k -
// q_k)) and (2/C) q_c ((q_c - p_c) - sum_k q_k (q_k - p_k)).
#pragma once
#include "consistency.h"

namespace mtk {

void softmax_mse_cpu(const Consistency& args);
#if defined(MTK_CUDA)
void softmax_mse_cuda(const Consistency& args);
#else
constexpr Kernel<Consistency> softmax_mse_cuda = nullptr;
#endif

}  // namespace mtk
