// The CPU side of consistency.h: logits are brought to accumulators in scratch memory, then handed to the
// loss, either one row at a time (the vector along the classes) or kLanes rows at a time (across the rows:
// few or strided classes).
//
// A loss is a struct:
//   Cross               what is added up beside the exponentials (below)
//   kExact              whether its gradients have a quotient of sums as a large constant: the sums are fp64
//   kLogits             whether the student's gradient needs x and y, not exponentials alone
//   Terms, TeacherTerms what a second pass adds up, for loss and gradient, and for the teacher's gradient
//   OfStudent, OfTeacher  a class's gradient; set(lane, row) prepares each, by the row's sums
//   loss(row)           the row's loss
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "logits_cpu.h"
#include "row_loops.h"

namespace mtk {

constexpr int64_t kLogitsPerThread = 8 * 1024;  // fewer do not pay for one more thread

// ---- what is added up beside exponentials; the class that is masked at the side which weighs it adds
// nothing

struct NoCross {
  template <class Acc>
  MTK_INLINE static Acc term(Acc, Acc, Acc, Acc) {
    return 0;
  }
};

// ---- rows

// What a row's constants are worked out in, to be rounded once.
template <class Acc>
using Wide = std::conditional_t<sizeof(Acc) == 8, long double, double>;

// One row: its sums, and what becomes of them.
struct LossRow {
  double za = 0, zb = 0, cross = 0, terms[2] = {}, teacher_terms[2] = {};
  int64_t classes = 0;
  double smoothing = 0;             // label_smoothing
  double weight = 1;                // times 0 where it is below the threshold
  double student = 0, teacher = 0;  // what gradients are multiplied by
  bool kept = true;                 // not below the threshold

  bool masked() const { return za == 0 || zb == 0; }  // -inf throughout; NaN is not masked
  bool counts() const { return !masked() && weight != 0; }
  // Both 0 for a masked row.
  template <class Acc>
  Wide<Acc> inverse_za() const {
    return masked() ? Wide<Acc>(0) : 1 / static_cast<Wide<Acc>>(za);
  }
  template <class Acc>
  Wide<Acc> inverse_zb() const {
    return masked() ? Wide<Acc>(0) : 1 / static_cast<Wide<Acc>>(zb);
  }

  void take(const Sums& sums) { za = sums.za, zb = sums.zb, cross = sums.cross; }
};

// A row's constant in two parts: rounded to one, it would be off by the same for every class of the row,
// which does not average out.
template <class Acc, int L>
struct Split {
  Acc high[L], low[L];

  void set(int lane, Wide<Acc> value) {
    high[lane] = static_cast<Acc>(value);
    low[lane] = std::isfinite(high[lane]) ? static_cast<Acc>(value - high[lane]) : Acc(0);
  }
};

// zb * (p - q) = ea * (zb / za) - eb: exactly 0 for equal sides, however the compiler contracts it.
template <class Acc, int L>
struct Difference : Split<Acc, L> {
  void set(int lane, const LossRow& row) {
    Split<Acc, L>::set(lane, row.masked() ? Wide<Acc>(0) : static_cast<Wide<Acc>>(row.zb) / row.za);
  }
  MTK_INLINE Acc operator()(Acc ea, Acc eb, int lane) const {
    return (ea * this->high[lane] - eb) + ea * this->low[lane];
  }
  // The difference less a constant, near which it may be.
  MTK_INLINE Acc less(const Split<Acc, L>& mean, Acc ea, Acc eb, int lane) const {
    return ((ea * this->high[lane] - eb) - mean.high[lane]) + (ea * this->low[lane] - mean.low[lane]);
  }
};

// scale * (p - q)
template <class Acc, int L>
struct ProbabilityDifference {
  Difference<Acc, L> difference;
  Acc factor[L];

  void set_scaled(int lane, const LossRow& row, double scale) {
    difference.set(lane, row);
    factor[lane] = static_cast<Acc>(scale * row.inverse_zb<Acc>());
  }
  MTK_INLINE Acc operator()(Acc ea, Acc eb, Acc, Acc, int lane) const {
    return factor[lane] * difference(ea, eb, lane);
  }
};

template <class F, int L>
F prepared(const LossRow (&rows)[L]) {
  F f;
  for (int lane = 0; lane < L; ++lane) f.set(lane, rows[lane]);
  return f;
}

template <template <class, int> class Of, class Acc, int L>
void sum_terms(const Block<Acc, L>& block, const LossRow (&rows)[L], Terms (&sums)[L]) {
  const auto f = prepared<Of<Acc, L>>(rows);
  for_each_block<Acc, L>(block.classes,
                         [&](int64_t begin, int64_t end) { add_terms(f, block, begin, end, sums); });
}

// softmax_cross_entropy's target where it is hard: exponentials become 1 at the first largest class, 0
// elsewhere.
template <class Acc, int L>
struct HardTarget {
  int64_t index[L];
  Acc a[L];  // the student's logit there

  explicit HardTarget(const Block<Acc, L>& block) {
    first_largest(block.b, block.classes, block.mb, index);
    for (int lane = 0; lane < L; ++lane) a[lane] = block.a[index[lane] * L + lane];
  }
  void replace(const Block<Acc, L>& block, LossRow (&rows)[L]) const {
    std::fill_n(block.eb, block.classes * L, Acc(0));
    for (int lane = 0; lane < L; ++lane) {
      if (rows[lane].masked()) continue;
      block.eb[index[lane] * L + lane] = 1;
      rows[lane].zb = 1;
      rows[lane].cross = (a[lane] - block.ma[lane]) * block.sa;
    }
  }
};

template <class Acc, int L>
struct LogitSum {
  void set(int, const LossRow&) {}
  MTK_INLINE Acc first(Acc, Acc, Acc x, Acc, int) const { return x; }
  MTK_INLINE Acc second(Acc, Acc, Acc, Acc, int) const { return 0; }
};

// Exponentials and sums of L rows; which of them count is known afterwards.
template <class Loss, class Acc, int L>
void sum_rows(const Consistency& args, Block<Acc, L>& block, LossRow (&rows)[L]) {
  maxima(block);
  if constexpr (!Loss::kSoftmax) {
    for (int lane = 0; lane < L; ++lane) {
      rows[lane].za = !masked_side(block.a, block.ma[lane], block.classes, L, lane);
      rows[lane].zb = !masked_side(block.b, block.mb[lane], block.classes, L, lane);
      block.ma[lane] = block.mb[lane] = 0;
    }
    block.sa = block.sb = 1;
  } else {
    std::optional<HardTarget<Acc, L>> hard;
    if (args.hard) hard.emplace(block);
    for (int lane = 0; lane < L; ++lane) {
      block.ma[lane] = finite_max(block.ma[lane]), block.mb[lane] = finite_max(block.mb[lane]);
    }
    Sums sums[L] = {};
    Terms logit_sums[L] = {};
    if (args.label_smoothing != 0) sum_terms<LogitSum>(block, rows, logit_sums);
    for_each_block<Acc, L>(block.classes, [&](int64_t begin, int64_t end) {
      if (Loss::kExact || args.dteacher.data) {
        add_exponentials<typename Loss::Cross, double>(block, begin, end, sums);
      } else {
        add_exponentials<typename Loss::Cross, Acc>(block, begin, end, sums);
      }
    });
    for (int lane = 0; lane < L; ++lane) rows[lane].take(sums[lane]);
    for (int lane = 0; lane < L && args.has_threshold; ++lane) {
      rows[lane].kept = !rows[lane].masked() &&
                        !(static_cast<Acc>(1 / rows[lane].zb) < static_cast<Acc>(args.threshold.get()));
      if (!rows[lane].kept) rows[lane].weight = 0;
    }
    if (hard) hard->replace(block, rows);
    for (int lane = 0; lane < L; ++lane) rows[lane].terms[1] = logit_sums[lane][0];
  }
}

template <template <class, int> class Of, class Acc, int L>
void write_side(const Block<Acc, L>& block, const LossRow (&rows)[L], Acc* to) {
  write_gradient(prepared<Of<Acc, L>>(rows), block, to);
  for (int lane = 0; lane < L; ++lane) {
    for (int64_t c = 0; !rows[lane].counts() && c < block.classes; ++c) to[c * L + lane] = 0;
  }
}

// Losses of L rows, and the gradients that are not null; dstudent may be ea where dteacher is null.
template <class Loss, class Acc, int L>
void run_block(const Consistency& args, Block<Acc, L>& block, LossRow (&rows)[L], Acc* dstudent,
               Acc* dteacher, double* losses) {
  sum_rows<Loss>(args, block, rows);
  if constexpr (Loss::kTerms) {
    Terms terms[L] = {};
    sum_terms<Loss::template Terms>(block, rows, terms);
    for (int lane = 0; lane < L; ++lane) std::copy_n(terms[lane], 2, rows[lane].terms);
  }
  for (int lane = 0; lane < L; ++lane) {
    losses[lane] = rows[lane].counts() ? rows[lane].weight * Loss::loss(rows[lane]) : 0;
    rows[lane].student = args.row_scale() * rows[lane].weight * args.student_scale;
    rows[lane].teacher = args.row_scale() * rows[lane].weight * args.teacher_scale;
  }
  if (dteacher) {
    if constexpr (Loss::kTeacherTerms) {
      Terms terms[L] = {};
      sum_terms<Loss::template TeacherTerms>(block, rows, terms);
      for (int lane = 0; lane < L; ++lane) std::copy_n(terms[lane], 2, rows[lane].teacher_terms);
    }
    write_side<Loss::template OfTeacher>(block, rows, dteacher);
  }
  if (dstudent) write_side<Loss::template OfStudent>(block, rows, dstudent);
}

// ---- memory and threads

// What a thread's rows add up to.
struct Share {
  double* losses;  // [rows]
  int64_t kept = 0;
};

template <int L>
void read_weights(const Consistency& args, int64_t first, int lanes, LossRow (&rows)[L]) {
  for (int lane = 0; lane < L; ++lane) {
    rows[lane].weight = 1, rows[lane].kept = true;
    if (!args.weight.data || lane >= lanes) continue;
    const int64_t offset = row_offset(args.weight, args.row_sizes, first + lane);
    visit(args.weight.dtype, [&](auto type) {
      rows[lane].weight = widen(static_cast<const decltype(type)*>(args.weight.data)[offset]);
    });
  }
}

template <class Acc, int L>
void subtract_center(const Operand& center, int64_t classes, Acc* b) {
  visit(center.dtype, [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(center.data);
    for (int64_t c = 0; c < classes; ++c) {
      const Acc shift = static_cast<Acc>(widen(from[c * center.class_stride]));
      for (int lane = 0; lane < L; ++lane) b[c * L + lane] -= shift;
    }
  });
}

// Rows [begin, end), L at a time. scratch: [5, L, classes].
template <class Loss, class Acc, int L>
void run_rows(const Consistency& args, int64_t begin, int64_t end, Acc* scratch, Share& share) {
  const int64_t size = args.classes * L;
  const bool apart = L == 1 || Loss::kLogits || args.dteacher.data;  // exponentials beside the logits
  LossRow rows[L];
  for (LossRow& row : rows) row.classes = args.classes, row.smoothing = args.label_smoothing;
  for (int64_t first = begin; first < end; first += L) {
    const int lanes = static_cast<int>(std::min<int64_t>(L, end - first));
    const auto rows_of = [&](const Operand& operand) {
      return RowsOf<L>(operand, args.row_sizes, first, lanes, args.classes);
    };
    const RowsOf<L> student = rows_of(args.student), teacher = rows_of(args.teacher),
                    dstudent = rows_of(args.dstudent), dteacher = rows_of(args.dteacher);
    Acc *a = student.template in_place<Acc>(), *b = teacher.template in_place<Acc>();
    if (!a) student.gather(a = scratch);
    if (!b || args.center.data) {
      teacher.gather(b = scratch + size);
      if (args.center.data) subtract_center<Acc, L>(args.center, args.classes, b);
    }
    Acc *ea = apart ? scratch + 2 * size : a, *eb = apart ? scratch + 3 * size : b;
    // The student's gradient goes where its exponentials are; those lie in its own row where they can.
    Acc* direct = dstudent.template in_place<Acc>();
    if (direct && apart && !args.dteacher.data) ea = direct;
    Block<Acc, L> block{a,
                        b,
                        ea,
                        eb,
                        args.classes,
                        static_cast<Acc>(args.student_scale),
                        static_cast<Acc>(args.teacher_scale),
                        {},
                        {}};
    double losses[L];
    read_weights(args, first, lanes, rows);
    Acc* to_teacher = args.dteacher.data ? scratch + 4 * size : nullptr;
    run_block<Loss>(args, block, rows, args.dstudent.data ? ea : nullptr, to_teacher, losses);
    for (int lane = 0; lane < lanes; ++lane) {
      share.losses[first + lane] = losses[lane];
      share.kept += rows[lane].kept;
    }
    if (args.dstudent.data && ea != direct) dstudent.scatter(ea);
    if (to_teacher) dteacher.scatter(to_teacher);
  }
}

inline double sum_pairwise(const double* values, size_t count) {
  if (count > 64)
    return sum_pairwise(values, count / 2) + sum_pairwise(values + count / 2, count - count / 2);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// Shares the rows among threads, whole tiles each where there are tiles, and reduces their losses in order:
// the same bits for any thread count.
template <class Loss, class Acc>
void run_threads(const Consistency& args) {
  const bool tiled = in_tiles(args.classes, args.student, args.teacher);
  std::vector<double> losses(static_cast<size_t>(args.rows));
  const int64_t unit = tiled ? kLanes : 1, units = (args.rows + unit - 1) / unit;
  const int64_t scratch_size = 5 * args.classes * unit;
  const int threads = threads_for(args.rows * args.classes, kLogitsPerThread);
  const std::unique_ptr<Acc[]> scratch(new Acc[static_cast<size_t>(scratch_size * threads)]);
  int64_t kept = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(+ : kept)
  for (int thread = 0; thread < threads; ++thread) {
    const int64_t begin = units * thread / threads * unit;
    const int64_t end = std::min(args.rows, units * (thread + 1) / threads * unit);
    Share share{losses.data()};
    Acc* own = scratch.get() + scratch_size * thread;
    tiled ? run_rows<Loss, Acc, kLanes>(args, begin, end, own, share)
          : run_rows<Loss, Acc, 1>(args, begin, end, own, share);
    kept += share.kept;
  }
  Acc* loss = static_cast<Acc*>(args.loss);
  if (args.reduction == Reduction::none) {
    for (int64_t row = 0; row < args.rows; ++row) loss[row] = static_cast<Acc>(losses[row]);
  } else {
    *loss = static_cast<Acc>(sum_pairwise(losses.data(), losses.size()) * args.row_scale());
  }
  if (args.utilization) {
    const double share = args.rows ? static_cast<double>(kept) / static_cast<double>(args.rows) : 0;
    *static_cast<Acc*>(args.utilization) = static_cast<Acc>(share);
  }
}

template <class Loss>
void consistency_cpu(const Consistency& args) {
  args.doubles() ? run_threads<Loss, double>(args) : run_threads<Loss, float>(args);
}

}  // namespace mtk
