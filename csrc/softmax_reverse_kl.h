// softmax_reverse_kl: row loss = sum_c p_c (log p_c - log q_c), gradients = p_c ((log p_c - log q_c) - loss)
// and q_c - p_c.
#pragma once
#include "consistency.h"

namespace mtk {

void softmax_reverse_kl_cpu(const Consistency& args);
#if defined(MTK_CUDA)
void softmax_reverse_kl_cuda(const Consistency& args);
#else
constexpr Kernel<Consistency> softmax_reverse_kl_cuda = nullptr;
#endif

}  // namespace mtk
