// softmax_cross_entropy: row loss = -sum_c t_c log p_c with the target t = (1 - s) q + s / C, where s is the
// label smoothing; hard: q is 1 at the teacher's first largest class and 0 elsewhere. Gradients = p_c - t_c
// and, of a soft target, (1 - s) q_c (sum_k q_k log p_k - log p_c).
#pragma once
#include "consistency.h"

namespace mtk {

void softmax_cross_entropy_cpu(const Consistency& args);
#if defined(MTK_CUDA)
void softmax_cross_entropy_cuda(const Consistency& args);
#else
constexpr Kernel<Consistency> softmax_cross_entropy_cuda = nullptr;
#endif

}  // namespace mtk
