// softmax_reverse_kl on the CPU: sum_c p (log p - log q) = (sum_c ea (x - y)) / za + log(zb / za).
#include "softmax_reverse_kl.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

struct SoftmaxReverseKl {
  static constexpr bool kSoftmax = true, kExact = true, kLogits = true, kTerms = false, kTeacherTerms = false;

  struct Cross {
    template <class Acc>
    MTK_INLINE static Acc term(Acc ea, Acc, Acc x, Acc y) {
      return ea * where(ea != 0, x - y);
    }
  };

  static double loss(const LossRow& row) { return row.cross / row.za + std::log(row.zb / row.za); }

  // p ((x - y) - mean of x - y along p); x is near 0 where p counts, so that one rounding is large, not two
  template <class Acc, int L>
  struct OfStudent {
    Split<Acc, L> mean;
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      factor[lane] = static_cast<Acc>(row.student * row.inverse_za<Acc>());
      mean.set(lane, row.cross * row.inverse_za<Acc>());
    }
    MTK_INLINE Acc operator()(Acc ea, Acc, Acc x, Acc y, int lane) const {
      return factor[lane] * ea * where(ea != 0, ((x - mean.high[lane]) - y) - mean.low[lane]);
    }
  };

  template <class Acc, int L>
  struct OfTeacher : ProbabilityDifference<Acc, L> {
    void set(int lane, const LossRow& row) { this->set_scaled(lane, row, -row.teacher); }
  };
};

}  // namespace

void softmax_reverse_kl_cpu(const Consistency& args) { consistency_cpu<SoftmaxReverseKl>(args); }

}  // namespace mtk
