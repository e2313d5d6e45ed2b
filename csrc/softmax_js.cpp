// softmax_js on the CPU. With r = (p - q) / (p + q) = d / (zb p + zb q): sums of p log1p(r) and of q log1p(-r).
#include "softmax_js.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

// p log(p / m) and q log(q / m) of a class.
template <class Acc, int L>
struct Logs {
  Difference<Acc, L> difference;
  Acc inverse_za[L], inverse_zb[L];

  void set(int lane, const LossRow& row) {
    difference.set(lane, row);
    inverse_za[lane] = static_cast<Acc>(row.inverse_za()), inverse_zb[lane] = static_cast<Acc>(row.inverse_zb());
  }
  MTK_INLINE Acc r(const Class<Acc>& c, int lane) const {
    const Acc both = c.ea * difference.high[lane] + c.eb;
    const Acc r = difference(c.ea, c.eb, lane) / (both == 0 ? Acc(1) : both);
    return r > 1 ? Acc(1) : r < -1 ? Acc(-1) : r;
  }
  MTK_INLINE Acc of_p(const Class<Acc>& c, int lane) const {
    return c.ea * inverse_za[lane] * where(c.ea != 0, log1p_near(r(c, lane)));
  }
  MTK_INLINE Acc of_q(const Class<Acc>& c, int lane) const {
    return c.eb * inverse_zb[lane] * where(c.eb != 0, log1p_near(-r(c, lane)));
  }
};

struct SoftmaxJs {
  using Cross = NoCross;
  static constexpr bool kSoftmax = true, kLogits = false, kTerms = true, kTeacherTerms = false;

  static double loss(const LossRow& row) { return (row.terms[0] + row.terms[1]) / 2; }

  template <class Acc, int L>
  struct Terms : Logs<Acc, L> {
    MTK_INLINE void add(const Class<Acc>& c, int lane, Acc& of_p, Acc& of_q) const {
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
      mean[lane] = static_cast<Acc>(row.terms[0] * row.inverse_za());
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
      mean[lane] = static_cast<Acc>(row.terms[1] * row.inverse_zb());
    }
    MTK_INLINE Acc operator()(const Class<Acc>& c, int lane) const {
      return factor[lane] * (this->of_q(c, lane) - c.eb * mean[lane]);
    }
  };
};

}  // namespace

void softmax_js_cpu(const Consistency& args) { consistency_cpu<SoftmaxJs>(args); }

}  // namespace mtk
