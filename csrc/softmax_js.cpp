// softmax_js on the CPU: sums of p log(p / m) and of q log(q / m), with m = (p + q) / 2.
#include "softmax_js.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

// p log(p / m) and q log(q / m) of a class: p / m = 1 + r = 2 p / (p + q), which keeps its digits where p is
// small.
template <class Acc, int L>
struct Logs {
  Difference<Acc, L> difference;
  Acc inverse_za[L], inverse_zb[L];

  void set(int lane, const LossRow& row) {
    difference.set(lane, row);
    inverse_za[lane] = static_cast<Acc>(row.inverse_za<Acc>()),
    inverse_zb[lane] = static_cast<Acc>(row.inverse_zb<Acc>());
  }
  MTK_INLINE Acc sum(Acc ea, Acc eb, int lane) const {
    return ea * difference.high[lane] + eb + std::numeric_limits<Acc>::min();  // not 0
  }
  MTK_INLINE Acc of_p(Acc ea, Acc eb, int lane) const {
    const Acc both = sum(ea, eb, lane), r = difference(ea, eb, lane) / both;
    return ea * inverse_za[lane] * log_near(2 * (ea * difference.high[lane]) / both, r);
  }
  MTK_INLINE Acc of_q(Acc ea, Acc eb, int lane) const {
    const Acc both = sum(ea, eb, lane), r = difference(ea, eb, lane) / both;
    return eb * inverse_zb[lane] * log_near(2 * eb / both, -r);
  }
};

struct SoftmaxJs {
  using Cross = NoCross;
  static constexpr bool kSoftmax = true, kExact = true, kLogits = false, kTerms = true, kTeacherTerms = false;

  static double loss(const LossRow& row) { return (row.terms[0] + row.terms[1]) / 2; }

  template <class Acc, int L>
  struct Terms : Logs<Acc, L> {
    MTK_INLINE Acc first(Acc ea, Acc eb, Acc, Acc, int lane) const { return this->of_p(ea, eb, lane); }
    MTK_INLINE Acc second(Acc ea, Acc eb, Acc, Acc, int lane) const { return this->of_q(ea, eb, lane); }
  };

  template <class Acc, int L>
  struct OfStudent : Logs<Acc, L> {
    Split<Acc, L> mean;
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      Logs<Acc, L>::set(lane, row);
      factor[lane] = static_cast<Acc>(row.student / 2);
      mean.set(lane, row.terms[0] * row.inverse_za<Acc>());
    }
    MTK_INLINE Acc operator()(Acc ea, Acc eb, Acc, Acc, int lane) const {
      return factor[lane] * ((this->of_p(ea, eb, lane) - ea * mean.high[lane]) - ea * mean.low[lane]);
    }
  };

  template <class Acc, int L>
  struct OfTeacher : Logs<Acc, L> {
    Split<Acc, L> mean;
    Acc factor[L];

    void set(int lane, const LossRow& row) {
      Logs<Acc, L>::set(lane, row);
      factor[lane] = static_cast<Acc>(row.teacher / 2);
      mean.set(lane, row.terms[1] * row.inverse_zb<Acc>());
    }
    MTK_INLINE Acc operator()(Acc ea, Acc eb, Acc, Acc, int lane) const {
      return factor[lane] * ((this->of_q(ea, eb, lane) - eb * mean.high[lane]) - eb * mean.low[lane]);
    }
  };
};

}  // namespace

void softmax_js_cpu(const Consistency& args) { consistency_cpu<SoftmaxJs>(args); }

}  // namespace mtk
