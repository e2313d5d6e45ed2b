// logit_mse on the CPU. There are no exponentials: x and y are the logits.
#include "logit_mse.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

// a - b; 0 where both are the same infinity.
template <class Acc>
MTK_INLINE Acc distance(Acc x, Acc y) {
  return where(x != y, x - y);
}

struct LogitMse {
  using Cross = NoCross;
  static constexpr bool kSoftmax = false, kExact = false, kLogits = true, kTerms = true,
                        kTeacherTerms = false;

  static double loss(const LossRow& row) { return row.terms[0] / static_cast<double>(row.classes); }

  template <class Acc, int L>
  struct Terms {
    void set(int, const LossRow&) {}
    MTK_INLINE Acc first(Acc, Acc, Acc x, Acc y, int) const { return distance(x, y) * distance(x, y); }
    MTK_INLINE Acc second(Acc, Acc, Acc, Acc, int) const { return 0; }
  };

  template <class Acc, int L>
  struct OfStudent {
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      factor[lane] = static_cast<Acc>(2 * row.student / static_cast<double>(row.classes));
    }
    MTK_INLINE Acc operator()(Acc, Acc, Acc x, Acc y, int lane) const {
      return factor[lane] * distance(x, y);
    }
  };

  template <class Acc, int L>
  struct OfTeacher {
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      factor[lane] = static_cast<Acc>(-2 * row.teacher / static_cast<double>(row.classes));
    }
    MTK_INLINE Acc operator()(Acc, Acc, Acc x, Acc y, int lane) const {
      return factor[lane] * distance(x, y);
    }
  };
};

}  // namespace

void logit_mse_cpu(const Consistency& args) { consistency_cpu<LogitMse>(args); }

}  // namespace mtk
