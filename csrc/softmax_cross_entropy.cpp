// softmax_cross_entropy on the CPU: (1 - s) (log za - (sum_c eb x) / zb) + s (log za - (sum_c x) / C). A hard
// target has the exponentials eb of one class, so that all else stays as it is.
#include "softmax_cross_entropy.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

struct SoftmaxCrossEntropy {
  static constexpr bool kSoftmax = true, kExact = false, kLogits = false, kTerms = false,
                        kTeacherTerms = false;

  struct Cross {
    template <class Acc>
    MTK_INLINE static Acc term(Acc, Acc eb, Acc x, Acc) {
      return eb * where(eb != 0, x);
    }
  };

  static double loss(const LossRow& row) {
    const double log_za = std::log(row.za), of_target = log_za - row.cross / row.zb;
    if (row.smoothing == 0) return of_target;
    return (1 - row.smoothing) * of_target +
           row.smoothing * (log_za - row.terms[1] / static_cast<double>(row.classes));
  }

  // (1 - s) (p - q) + s (p - 1 / C)
  template <class Acc, int L>
  struct OfStudent : ProbabilityDifference<Acc, L> {
    Acc smoothed[L], uniform[L];

    void set(int lane, const LossRow& row) {
      this->set_scaled(lane, row, row.student * (1 - row.smoothing));
      smoothed[lane] = static_cast<Acc>(row.student * row.smoothing * row.inverse_za<Acc>());
      uniform[lane] = static_cast<Acc>(row.student * row.smoothing / static_cast<double>(row.classes));
    }
    MTK_INLINE Acc operator()(Acc ea, Acc eb, Acc x, Acc y, int lane) const {
      return ProbabilityDifference<Acc, L>::operator()(ea, eb, x, y, lane) +
             (smoothed[lane] * ea - uniform[lane]);
    }
  };

  // (1 - s) q (mean of x along q - x)
  template <class Acc, int L>
  struct OfTeacher {
    Split<Acc, L> mean;
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      factor[lane] = static_cast<Acc>(row.teacher * (1 - row.smoothing) * row.inverse_zb<Acc>());
      mean.set(lane, row.cross * row.inverse_zb<Acc>());
    }
    MTK_INLINE Acc operator()(Acc, Acc eb, Acc x, Acc, int lane) const {
      return factor[lane] * eb * where(eb != 0, (mean.high[lane] - x) + mean.low[lane]);
    }
  };
};

}  // namespace

void softmax_cross_entropy_cpu(const Consistency& args) { consistency_cpu<SoftmaxCrossEntropy>(args); }

}  // namespace mtk
