// softmax_mse on CUDA.
#include "softmax_mse.h"

#include "consistency.cuh"

namespace mtk {
namespace {

template <class Acc, bool kOptions>
struct SoftmaxMse {
  static constexpr int kSums = 0, kTerms = kOptions ? 3 : 2;
  static constexpr bool kLooks = false, kLogits = false;
  Sides<Acc> sides;
  double z[2], classes, squares;
  Acc lead[2];
  Quotient<Acc> along[2];  // mean of z1 (p - q) along each side's probabilities

  __device__ explicit SoftmaxMse(const Consistency&) {}
  template <class Part>
  __device__ void finish(const double (&sums)[2], const Part&, double count) {
    sides.set(sums[0], sums[1]);
    z[0] = sums[0], z[1] = sums[1], classes = count;
    lead[0] = static_cast<Acc>(2 / (count * z[0] * z[1]));
    lead[1] = static_cast<Acc>(-2 / (count * z[1] * z[1]));
  }
  // With d = z1 (p - q): sums of d^2, of e0 d, of e1 d.
  __device__ void add_terms(const Class<Acc, 2>& c, Acc* terms) const {
    const Acc d = sides.difference(c);
    terms[0] += d * d;
    terms[1] += c.e[0] * d;
    if constexpr (kOptions) terms[2] += c.e[1] * d;
  }
  __device__ void finish_terms(const double (&terms)[kTerms]) {
    squares = terms[0] / (z[1] * z[1]);
    along[0].set(terms[1], z[0]);
    if constexpr (kOptions) along[1].set(terms[2], z[1]);
  }
  __device__ double value() const { return squares / classes; }
  template <int side>
  __device__ Acc of(const Class<Acc, 2>& c) const {
    return lead[side] * c.e[side] * along[side].subtracted(sides.difference(c), 0);
  }
};

}  // namespace

void softmax_mse_cuda(const Consistency& args) { consistency_cuda<SoftmaxMse>(args, "softmax_mse"); }

}  // namespace mtk
