// softmax_mse on the CPU, as consistency_cpu.h wants it; mean_teacher_loss has it too. With d = zb (p - q):
// sums of d^2, of ea d and of eb d.
#pragma once
#include "consistency_cpu.h"

namespace mtk {

struct SoftmaxMse {
  using Cross = NoCross;
  static constexpr bool kSoftmax = true, kExact = false, kLogits = false, kTerms = true, kTeacherTerms = true;

  static double loss(const LossRow& row) {
    return row.terms[0] / (row.zb * row.zb * static_cast<double>(row.classes));
  }

  template <class Acc, int L>
  struct Terms : Difference<Acc, L> {
    MTK_INLINE Acc first(Acc ea, Acc eb, Acc, Acc, int lane) const {
      const Acc d = (*this)(ea, eb, lane);
      return d * d;
    }
    MTK_INLINE Acc second(Acc ea, Acc eb, Acc, Acc, int lane) const { return ea * (*this)(ea, eb, lane); }
  };

  template <class Acc, int L>
  struct TeacherTerms : Difference<Acc, L> {
    MTK_INLINE Acc first(Acc ea, Acc eb, Acc, Acc, int lane) const { return eb * (*this)(ea, eb, lane); }
    MTK_INLINE Acc second(Acc, Acc, Acc, Acc, int) const { return 0; }
  };

  // factor * ea * (d - mean of d along the student's probabilities)
  template <class Acc, int L>
  struct OfStudent {
    Difference<Acc, L> difference;
    Split<Acc, L> mean;
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      difference.set(lane, row);
      factor[lane] = static_cast<Acc>(2 * row.student / static_cast<double>(row.classes) *
                                      row.inverse_za<Acc>() * row.inverse_zb<Acc>());
      mean.set(lane, row.terms[1] * row.inverse_za<Acc>());
    }
    MTK_INLINE Acc operator()(Acc ea, Acc eb, Acc, Acc, int lane) const {
      return factor[lane] * ea * difference.less(mean, ea, eb, lane);
    }
  };

  template <class Acc, int L>
  struct OfTeacher {
    Difference<Acc, L> difference;
    Split<Acc, L> mean;
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      difference.set(lane, row);
      factor[lane] = static_cast<Acc>(-2 * row.teacher / static_cast<double>(row.classes) *
                                      row.inverse_zb<Acc>() * row.inverse_zb<Acc>());
      mean.set(lane, row.teacher_terms[0] * row.inverse_zb<Acc>());
    }
    MTK_INLINE Acc operator()(Acc ea, Acc eb, Acc, Acc, int lane) const {
      return factor[lane] * eb * difference.less(mean, ea, eb, lane);
    }
  };
};

}  // namespace mtk
