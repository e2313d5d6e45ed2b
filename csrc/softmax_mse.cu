// softmax_mse on CUDA.
#include "softmax_mse.h"

#include "consistency.cuh"

namespace mtk {
namespace {

template <class Acc>
struct SoftmaxMse {
  static constexpr bool kCross = false, kSecondPass = true;
  Weights<Acc> weights;
  Acc classes, inverse_za, factor, squares = 0, mean_along = 0;

  __device__ SoftmaxMse(const RowSums<Acc>& sums, int64_t classes, double scale)
      : weights(sums),
        classes(static_cast<Acc>(classes)),
        inverse_za(sums.inverse_za()),
        factor(static_cast<Acc>(2 * scale) / this->classes * inverse_za) {}

  // terms: sum of (p - q)^2, sum of ea (p - q)
  __device__ void add(Acc ea, Acc eb, Acc (&terms)[2]) const {
    const Acc d = weights.difference(ea, eb);
    terms[0] += d * d;
    terms[1] += ea * d;
  }
  __device__ void finish(const Acc (&terms)[2]) {
    squares = terms[0];
    mean_along = terms[1] * inverse_za;
  }
  __device__ Acc value() const { return squares / classes; }
  __device__ Acc gradient(Acc ea, Acc eb) const {
    return factor == 0 ? Acc(0) : factor * ea * (weights.difference(ea, eb) - mean_along);
  }
};

}  // namespace

void softmax_mse_cuda(const Consistency& args) { consistency_cuda<SoftmaxMse>(args, "softmax_mse"); }

}  // namespace mtk
