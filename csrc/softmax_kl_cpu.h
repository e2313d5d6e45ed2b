// softmax_kl on the CPU, as consistency_cpu.h wants it; mean_teacher_loss has it too. sum_c q (log q - log p)
// = (sum_c eb (y - x)) / zb + log(za / zb): one logarithm a row, and exactly 0 for equal sides.
#pragma once
#include "consistency_cpu.h"

namespace mtk {

struct SoftmaxKl {
  static constexpr bool kSoftmax = true, kExact = false, kLogits = false, kTerms = false,
                        kTeacherTerms = false;

  struct Cross {
    template <class Acc>
    MTK_INLINE static Acc term(Acc, Acc eb, Acc x, Acc y) {
      return eb * where(eb != 0, y - x);
    }
  };

  static double loss(const LossRow& row) { return row.cross / row.zb + std::log(row.za / row.zb); }

  template <class Acc, int L>
  struct OfStudent : ProbabilityDifference<Acc, L> {
    void set(int lane, const LossRow& row) { this->set_scaled(lane, row, row.student); }
  };

  // q ((y - x) - mean of y - x along q); y is near 0 where q counts, so that one rounding is large, not two
  template <class Acc, int L>
  struct OfTeacher {
    Split<Acc, L> mean;
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      factor[lane] = static_cast<Acc>(row.teacher * row.inverse_zb<Acc>());
      mean.set(lane, row.cross * row.inverse_zb<Acc>());
    }
    MTK_INLINE Acc operator()(Acc, Acc eb, Acc x, Acc y, int lane) const {
      return factor[lane] * eb * where(eb != 0, ((y - mean.high[lane]) - x) - mean.low[lane]);
    }
  };
};

}  // namespace mtk
