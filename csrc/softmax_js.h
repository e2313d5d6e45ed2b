// softmax_js: with m = (p + q) / 2: row loss = sum_c (p_c log(p_c / m_c) + q_c log(q_c / m_c)) / 2, gradients
// = p_c (log(p_c / m_c) - sum_k p_k log(p_k / m_k)) / 2, and the same with q in place of p. With r_c = (p_c -
// q_c) / (p_c + q_c), log(p_c / m_c) = log1p(r_c); where p_c is the smaller, log(2 p_c / (p_c + q_c)).
#pragma once
#include "consistency.h"

namespace mtk {

void softmax_js_cpu(const Consistency& args);
#if defined(MTK_CUDA)
void softmax_js_cuda(const Consistency& args);
#else
constexpr Kernel<Consistency> softmax_js_cuda = nullptr;
#endif

}  // namespace mtk
