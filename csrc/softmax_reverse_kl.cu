// softmax_reverse_kl on CUDA. sum_c p (log p - log q) = (sum_c e0 (x - y)) / z0 + log(z1 / z0).
#include "softmax_reverse_kl.h"

#include "consistency.cuh"

namespace mtk {
namespace {

template <class Acc, bool kOptions>
struct SoftmaxReverseKl {
  static constexpr int kSums = 1, kTerms = 0;
  static constexpr bool kLooks = false, kLogits = true;
  Sides<Acc> sides;
  double loss;
  Quotient<Acc> mean;  // of x - y, along p

  __device__ explicit SoftmaxReverseKl(const Consistency&) {}
  __device__ void add(const Class<Acc, 2>& c, Acc* sums) const { Cross<0, 0, 1>::add(c, sums[0]); }
  __device__ void recenter(const double* z, const double* down, const double* factor, double* sums) const {
    Cross<0, 0, 1>::recenter(z, down, factor, sums[0]);
  }
  template <class Part>
  __device__ void finish(const double (&sums)[3], const Part&, double) {
    sides.set(sums[0], sums[1]);
    mean.set(sums[2] + 0 * sums[1], sums[0]);  // NaN at the teacher, even where p is 0
    loss = sums[2] / sums[0] + logarithm(sums[1] / sums[0]);
  }
  __device__ double value() const { return loss; }
  template <int side>
  __device__ Acc of(const Class<Acc, 2>& c) const {
    if (side == 1) return -sides.inverse[1] * sides.difference(c);
    const Acc p = sides.inverse[0] * c.e[0];
    return p != 0 ? p * mean.subtracted(c.x[0], c.x[1]) : Acc(0);
  }
};

}  // namespace

void softmax_reverse_kl_cuda(const Consistency& args) {
  consistency_cuda<SoftmaxReverseKl>(args, "softmax_reverse_kl");
}

}  // namespace mtk
