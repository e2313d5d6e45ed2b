// softmax_mse on the CPU.
#include "softmax_mse.h"

#include "softmax_mse_cpu.h"

namespace mtk {

void softmax_mse_cpu(const Consistency& args) { consistency_cpu<SoftmaxMse>(args); }

}  // namespace mtk
