// softmax_js on CUDA: sums of p log(p / m) and of q log(q / m), with m = (p + q) / 2.
#include "softmax_js.h"

#include "consistency.cuh"

namespace mtk {
namespace {

template <class Acc, bool kOptions>
struct SoftmaxJs {
  static constexpr int kSums = 0, kTerms = 2;
  static constexpr bool kLooks = false, kLogits = false;
  Sides<Acc> sides;
  double loss;
  Acc mean[2] = {0, 0};  // of log(p / m) along p, of log(q / m) along q

  __device__ explicit SoftmaxJs(const Consistency&) {}
  template <class Part>
  __device__ void finish(const double (&sums)[2], const Part&, double) {
    sides.set(sums[0], sums[1]);
  }
  // p log(p / m) or q log(q / m). With r = (p - q) / (p + q), p / m = 1 + r, and = 2 p / (p + q), which keeps
  // its digits where p is small.
  template <int side>
  __device__ Acc weighted_log(const Class<Acc, 2>& c) const {
    const Acc part = side == 0 ? c.e[0] * sides.ratio.high : c.e[1];
    const Acc both = c.e[0] * sides.ratio.high + c.e[1];
    if (part == 0) return 0;
    const Acc d = side == 0 ? sides.difference(c) : -sides.difference(c), r = d / both;
    const Acc log = r > Acc(-0.5) ? logarithm_1p(r) : logarithm(2 * part / both);
    return sides.inverse[side] * c.e[side] * log;
  }
  __device__ void add_terms(const Class<Acc, 2>& c, Acc* terms) const {
    terms[0] += weighted_log<0>(c);
    terms[1] += weighted_log<1>(c);
  }
  __device__ void finish_terms(const double (&terms)[2]) {
    loss = (terms[0] + terms[1]) / 2;
    mean[0] = static_cast<Acc>(terms[0]), mean[1] = static_cast<Acc>(terms[1]);
  }
  __device__ double value() const { return loss; }
  template <int side>
  __device__ Acc of(const Class<Acc, 2>& c) const {
    return (weighted_log<side>(c) - sides.inverse[side] * c.e[side] * mean[side]) / 2;
  }
};

}  // namespace

void softmax_js_cuda(const Consistency& args) { consistency_cuda<SoftmaxJs>(args, "softmax_js"); }

}  // namespace mtk
