// softmax_cross_entropy on CUDA: (1 - s) (log z0 - mean of x along q) + s (log z0 - (sum_c x) / C).
#include "softmax_cross_entropy.h"

#include "consistency.cuh"

namespace mtk {
namespace {

// The sums: e1 x; and where labels may be smoothed, x, and the number of classes whose x is in it.
template <class Acc, bool kOptions>
struct SoftmaxCrossEntropy {
  static constexpr int kSums = kOptions ? 3 : 1, kTerms = 0;
  static constexpr bool kLooks = kOptions, kLogits = kOptions;
  Sides<Acc> sides;
  double loss;
  Quotient<Acc> mean;  // of x, along q
  Acc keep, uniform;
  double smoothing;
  bool hard;
  Acc best = minus_infinity<Acc>(), best_student = 0;  // logits at the teacher's first largest class
  int label = kNoClass;

  __device__ explicit SoftmaxCrossEntropy(const Consistency& args)
      : keep(1), uniform(0), smoothing(kOptions ? args.label_smoothing : 0), hard(kOptions && args.hard) {}

  // Whether y at class j comes before x at class i: NaN is the largest, then the first of equal ones.
  __device__ static bool leads(Acc y, int j, Acc x, int i) {
    const bool y_nan = y != y, x_nan = x != x;
    if (y_nan || x_nan) return y_nan && (!x_nan || j < i);
    return y > x || (y == x && j < i);
  }
  __device__ void look(int index, const Acc (&logits)[2]) {
    if (hard && leads(logits[1], index, best, label))
      best = logits[1], best_student = logits[0], label = index;
  }
  template <class Group>
  __device__ void finish_look(Group& group, const Consistency&, const Logits<Acc, 2>&, int64_t) {
    if (!hard) return;
    double found[3] = {static_cast<double>(best), static_cast<double>(best_student),
                       static_cast<double>(label)};
    group.reduce(found, [](double (&x)[3], const double (&y)[3]) {
      if (!leads(static_cast<Acc>(y[0]), static_cast<int>(y[2]), static_cast<Acc>(x[0]),
                 static_cast<int>(x[2])))
        return;
#pragma unroll
      for (int k = 0; k < 3; ++k) x[k] = y[k];
    });
    best_student = static_cast<Acc>(found[1]), label = static_cast<int>(found[2]);
  }
  __device__ void add(const Class<Acc, 2>& c, Acc* sums) const {
    Cross<1, 0, -1>::add(c, sums[0]);
    if constexpr (kOptions) sums[1] += c.x[0], sums[2] += 1;
  }
  __device__ void recenter(const double* z, const double* down, const double* factor, double* sums) const {
    Cross<1, 0, -1>::recenter(z, down, factor, sums[0]);
    if constexpr (kOptions) sums[1] -= sums[2] * down[0];
  }
  template <class Part>
  __device__ void finish(const double (&sums)[2 + kSums], const Part& part, double classes) {
    sides.set(sums[0], sums[1]);
    double sum = sums[2], count = sums[1];
    if constexpr (kOptions) {
      if (hard) sum = static_cast<double>(part.scaled(0, best_student)), count = 1;
    }
    mean.set(sum + 0 * sums[0], count);  // NaN at the student, even where q is 0
    const double along = sum / count;
    const double log_z = logarithm(sums[0]);
    loss = log_z - along;
    if constexpr (!kOptions) return;
    if (smoothing == 0) return;
    keep = static_cast<Acc>(1 - smoothing), uniform = static_cast<Acc>(smoothing / classes);
    loss = (1 - smoothing) * loss + smoothing * (log_z - sums[kSums > 1 ? 3 : 2] / classes);
  }
  __device__ double value() const { return loss; }
  template <int side>
  __device__ Acc of(const Class<Acc, 2>& c) const {
    const Acc p = sides.inverse[0] * c.e[0], d = sides.inverse[1] * sides.difference(c);
    if (side == 0) {
      if (!kOptions) return d;
      const Acc taught = hard ? (c.index == label ? p - 1 : p) : d;
      return uniform == 0 ? taught : keep * taught + (static_cast<Acc>(smoothing) * p - uniform);
    }
    const Acc q = sides.inverse[1] * c.e[1];
    return q != 0 ? keep * q * -mean.subtracted(c.x[0], 0) : Acc(0);
  }
};

}  // namespace

void softmax_cross_entropy_cuda(const Consistency& args) {
  consistency_cuda<SoftmaxCrossEntropy>(args, "softmax_cross_entropy");
}

}  // namespace mtk
