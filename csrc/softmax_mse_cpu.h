// softmax_mse on the CPU, as consistency_cpu.h wants it; mean_teacher_loss has it too. With d = zb (p - q): sums of d^2, of ea d and of eb d.
#pragma once
#include "consistency_cpu.h"

namespace mtk {

struct SoftmaxMse {
  using Cross = NoCross;
  static constexpr bool kSoftmax = true, kLogits = false, kTerms = true, kTeacherTerms = true;

  static double loss(const LossRow& row) {
    return row.terms[0] / (row.zb * row.zb * static_cast<double>(row.classes));
  }

  template <class Acc, int L>
  struct Terms : Difference<Acc, L> {
    MTK_INLINE void add(const Class<Acc>& c, int lane, double& squares, double& along) const {
      const Acc d = (*this)(c.ea, c.eb, lane);
      squares += d * d;
      along += c.ea * d;
    }
  };

  template <class Acc, int L>
  struct TeacherTerms : Difference<Acc, L> {
    MTK_INLINE void add(const Class<Acc>& c, int lane, double& along, double&) const {
      along += c.eb * (*this)(c.ea, c.eb, lane);
    }
  };

  // factor * ea * (d - mean of d along the student's probabilities)
  template <class Acc, int L>
  struct OfStudent {
    Difference<Acc, L> difference;
    Acc factor[L], mean[L];

    void set(int lane, const LossRow& row) {
      difference.set(lane, row);
      factor[lane] = static_cast<Acc>(2 * row.student / static_cast<double>(row.classes) * row.inverse_za<Acc>() *
                                      row.inverse_zb<Acc>());
      mean[lane] = static_cast<Acc>(row.terms[1] * row.inverse_za<Acc>());
    }
    MTK_INLINE Acc operator()(const Class<Acc>& c, int lane) const {
      return factor[lane] * c.ea * (difference(c.ea, c.eb, lane) - mean[lane]);
    }
  };

  template <class Acc, int L>
  struct OfTeacher {
    Difference<Acc, L> difference;
    Acc factor[L], mean[L];

    void set(int lane, const LossRow& row) {
      difference.set(lane, row);
      factor[lane] = static_cast<Acc>(-2 * row.teacher / static_cast<double>(row.classes) * row.inverse_zb<Acc>() *
                                      row.inverse_zb<Acc>());
      mean[lane] = static_cast<Acc>(row.teacher_terms[0] * row.inverse_zb<Acc>());
    }
    MTK_INLINE Acc operator()(const Class<Acc>& c, int lane) const {
      return factor[lane] * c.eb * (difference(c.ea, c.eb, lane) - mean[lane]);
    }
  };
};

}  // namespace mtk
