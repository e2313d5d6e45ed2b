// softmax_kl on CUDA. sum_c q (log q - log p) = (sum_c eb (b - a)) / zb + log(za / zb), with logits less
// their maxima.
#include "softmax_kl.h"

#include "consistency.cuh"

namespace mtk {
namespace {

template <class Acc>
struct SoftmaxKl {
  static constexpr bool kCross = true, kSecondPass = false;
  RowSums<Acc> sums;
  Weights<Acc> weights;
  Acc scale;

  __device__ SoftmaxKl(const RowSums<Acc>& sums, int64_t, double scale)
      : sums(sums), weights(sums), scale(static_cast<Acc>(scale)) {}

  __device__ Acc value() const {
    return sums.masked() ? Acc(0) : sums.cross / sums.zb + logarithm(sums.za / sums.zb);
  }
  __device__ Acc gradient(Acc ea, Acc eb) const { return scale * weights.difference(ea, eb); }
};

}  // namespace

void softmax_kl_cuda(const Consistency& args) { consistency_cuda<SoftmaxKl>(args, "softmax_kl"); }

}  // namespace mtk
