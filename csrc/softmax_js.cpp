// softmax_js on the CPU: sums of p log(p / m) and of q log(q / m), with m = (p + q) / 2.
#include "softmax_js.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

// p log(p / m) and q log(q / m) of a class: p / m = 1 + r = 2 p / (p + q), which keeps its digits where p is small.
template <class Acc, int L>
struct Logs {
  Difference<Acc, L> difference;
  Acc inverse_za[L], inverse_zb[L];

  void set(int lane, const LossRow& row) {
    difference.set(lane, row);
    inverse_za[lane] = static_cast<Acc>(row.inverse_za<Acc>()), inverse_zb[lane] = static_cast<Acc>(row.inverse_zb<Acc>());
  }
  MTK_INLINE Acc sum(const Class<Acc>& c, int lane) const {
    const Acc sum = c.ea * difference.high[lane] + c.eb;
    return sum == 0 ? Acc(1) : sum;
  }
  MTK_INLINE Acc of_p(const Class<Acc>& c, int lane) const {
    const Acc both = sum(c, lane), r = difference(c.ea, c.eb, lane) / both;
    return c.ea * inverse_za[lane] * log_near(2 * (c.ea * difference.high[lane]) / both, r);
  }
  MTK_INLINE Acc of_q(const Class<Acc>& c, int lane) const {
    const Acc both = sum(c, lane), r = difference(c.ea, c.eb, lane) / both;
    return c.eb * inverse_zb[lane] * log_near(2 * c.eb / both, -r);
  }
};

struct SoftmaxJs {
  using Cross = NoCross;
  static constexpr bool kSoftmax = true, kLogits = false, kTerms = true, kTeacherTerms = false;

  static double loss(const LossRow& row) { return (row.terms[0] + row.terms[1]) / 2; }

  template <class Acc, int L>
  struct Terms : Logs<Acc, L> {
    MTK_INLINE void add(const Class<Acc>& c, int lane, double& of_p, double& of_q) const {
      of_p += Logs<Acc, L>::of_p(c, lane);
      of_q += Logs<Acc, L>::of_q(c, lane);
    }
  };

  template <class Acc, int L>
  struct OfStudent : Logs<Acc, L> {
    Acc factor[L], mean[L];

    void set(int lane, const LossRow& row) {
      Logs<Acc, L>::set(lane, row);
      factor[lane] = static_cast<Acc>(row.student / 2);
      mean[lane] = static_cast<Acc>(row.terms[0] * row.inverse_za<Acc>());
    }
    MTK_INLINE Acc operator()(const Class<Acc>& c, int lane) const {
      return factor[lane] * (this->of_p(c, lane) - c.ea * mean[lane]);
    }
  };

  template <class Acc, int L>
  struct OfTeacher : Logs<Acc, L> {
    Acc factor[L], mean[L];

    void set(int lane, const LossRow& row) {
      Logs<Acc, L>::set(lane, row);
      factor[lane] = static_cast<Acc>(row.teacher / 2);
      mean[lane] = static_cast<Acc>(row.terms[1] * row.inverse_zb<Acc>());
    }
    MTK_INLINE Acc operator()(const Class<Acc>& c, int lane) const {
      return factor[lane] * (this->of_q(c, lane) - c.eb * mean[lane]);
    }
  };
};

}  // namespace

void softmax_js_cpu(const Consistency& args) { consistency_cpu<SoftmaxJs>(args); }

}  // namespace mtk
