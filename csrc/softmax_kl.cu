// softmax_kl on CUDA. sum_c q (log q - log p) = (sum_c e1 (y - x)) / z1 + log(z0 / z1): one logarithm a row.
#include "softmax_kl.h"

#include "consistency.cuh"

namespace mtk {
namespace {

template <class Acc, bool kOptions>
struct SoftmaxKl {
  static constexpr int kSums = 1, kTerms = 0;
  static constexpr bool kLooks = false, kLogits = kOptions;
  Sides<Acc> sides;
  double loss;
  Quotient<Acc> mean;  // of y - x, along q

  __device__ explicit SoftmaxKl(const Consistency&) {}
  __device__ void add(const Class<Acc, 2>& c, Acc* sums) const { Cross<1, 1, 0>::add(c, sums[0]); }
  __device__ void recenter(const double* z, const double* down, const double* factor, double* sums) const {
    Cross<1, 1, 0>::recenter(z, down, factor, sums[0]);
  }
  template <class Part>
  __device__ void finish(const double (&sums)[3], const Part&, double) {
    sides.set(sums[0], sums[1]);
    mean.set(sums[2] + 0 * sums[0], sums[1]);  // NaN at the student, even where q is 0
    loss = sums[2] / sums[1] + logarithm(sums[0] / sums[1]);
  }
  __device__ double value() const { return loss; }
  template <int side>
  __device__ Acc of(const Class<Acc, 2>& c) const {
    if (side == 0) return sides.inverse[1] * sides.difference(c);
    const Acc q = sides.inverse[1] * c.e[1];
    return q != 0 ? q * mean.subtracted(c.x[1], c.x[0]) : Acc(0);
  }
};

}  // namespace

void softmax_kl_cuda(const Consistency& args) { consistency_cuda<SoftmaxKl>(args, "softmax_kl"); }

}  // namespace mtk
