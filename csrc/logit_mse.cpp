// logit_mse on the CPU. There are no exponentials: x and y are the logits.
#include "logit_mse.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

// a - b; 0 where both are the same infinity.
template <class Acc>
MTK_INLINE Acc distance(const Class<Acc>& c) {
  return where(c.x != c.y, c.x - c.y);
}

struct LogitMse {
  using Cross = NoCross;
  static constexpr bool kSoftmax = false, kLogits = true, kTerms = true, kTeacherTerms = false;

  static double loss(const LossRow& row) { return row.terms[0] / static_cast<double>(row.classes); }

  template <class Acc, int L>
  struct Terms {
    void set(int, const LossRow&) {}
    MTK_INLINE void add(const Class<Acc>& c, int, double& squares, double&) const {
      const Acc d = distance(c);
      squares += d * d;
    }
  };

  template <class Acc, int L>
  struct OfStudent {
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      factor[lane] = static_cast<Acc>(2 * row.student / static_cast<double>(row.classes));
    }
    MTK_INLINE Acc operator()(const Class<Acc>& c, int lane) const { return factor[lane] * distance(c); }
  };

  template <class Acc, int L>
  struct OfTeacher {
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      factor[lane] = static_cast<Acc>(-2 * row.teacher / static_cast<double>(row.classes));
    }
    MTK_INLINE Acc operator()(const Class<Acc>& c, int lane) const { return factor[lane] * distance(c); }
  };
};

}  // namespace

void logit_mse_cpu(const Consistency& args) { consistency_cpu<LogitMse>(args); }

}  // namespace mtk
