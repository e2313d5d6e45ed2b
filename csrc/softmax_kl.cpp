// softmax_kl on the CPU.
#include "softmax_kl.h"

#include "softmax_kl_cpu.h"

namespace mtk {

void softmax_kl_cpu(const Consistency& args) { consistency_cpu<SoftmaxKl>(args); }

}  // namespace mtk
