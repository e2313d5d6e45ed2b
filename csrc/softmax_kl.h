// softmax_kl: row loss = sum_c q_c (log q_c - log p_c), gradients = p_c - q_c and q_c ((log q_c - log p_c) -
// loss).
#pragma once
#include "consistency.h"

namespace mtk {

void softmax_kl_cpu(const Consistency& args);
#if defined(MTK_CUDA)
void softmax_kl_cuda(const Consistency& args);
#else
constexpr Kernel<Consistency> softmax_kl_cuda = nullptr;
#endif

}  // namespace mtk
