// mean_teacher_loss on the CPU. The consistency is that of consistency_cpu.h, on the second head or on the
// only one; what a label and the other head add to loss and gradients comes on top.
#include "mean_teacher_loss.h"

#include <algorithm>
#include <numeric>

#include "softmax_kl_cpu.h"
#include "softmax_mse_cpu.h"

namespace mtk {
namespace {

constexpr int64_t kNoLabel = -1;
constexpr int kBuffers = 7;  // a, d, b, their exponentials, the gradients' place

// What one thread's rows add up to; the sums of losses are taken row by row afterwards.
struct Totals {
  double *class_losses, *consistency_losses, *distances;  // [rows]
  int64_t counts[kCounts] = {};
};

int64_t label_of(const MeanTeacherLoss& args, int64_t row) {
  Operand rows{};
  std::copy_n(args.labels.row_strides, kMaxRowDims, rows.row_strides);
  const int64_t offset = row_offset(rows, args.row_sizes, row);
  const int64_t label = args.labels.wide ? static_cast<const int64_t*>(args.labels.data)[offset]
                                         : static_cast<const int32_t*>(args.labels.data)[offset];
  return label == args.ignore_index ? kNoLabel : label;
}

// to += factor * ea, lane by lane.
template <class Acc, int L>
MTK_CPU_CLONES void add_scaled(const Acc* ea, const Acc (&factor)[L], int64_t classes, Acc* to) {
  for (int64_t c = 0; c < classes * L; c += L) {
#pragma omp simd
    for (int lane = 0; lane < L; ++lane) to[c + lane] += factor[lane] * ea[c + lane];
  }
}

template <class Acc>
MTK_CPU_CLONES void add_scaled(const Acc* ea, const Acc (&factor)[1], int64_t classes, Acc* to) {
  const Acc by = factor[0];
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) to[c] += by * ea[c];
}

// The label's rank among the classes of a lane.
template <class Acc, int L>
MTK_CPU_CLONES int64_t rank_of(const Acc* logits, int64_t label, int lane, int64_t classes) {
  const Acc own = logits[label * L + lane];
  if (own != own) return classes + 5;
  int64_t ahead = 0;
#pragma omp simd reduction(+ : ahead)
  for (int64_t c = 0; c < classes; ++c) {
    const Acc x = logits[c * L + lane];
    ahead += (x > own) | ((x == own) & (c < label));
  }
  return ahead;
}

// Adds the squares of a - d, lane by lane.
template <class Acc>
MTK_CPU_CLONES void add_squares(const Acc* a, const Acc* d, int64_t size, double (&squares)[kLanes]) {
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int k = 0; k < kLanes; ++k) {
      const Acc distance = where(a[i + k] != d[i + k], a[i + k] - d[i + k]);
      squares[k] += static_cast<double>(distance) * distance;
    }
  }
  for (int64_t i = whole; i < size; ++i) {
    const double distance = where(a[i] != d[i], a[i] - d[i]);
    squares[i - whole] += distance * distance;
  }
}

// Adds factor * (a - d) onto one gradient and takes it off the other.
template <class Acc>
MTK_CPU_CLONES void add_along(const Acc* a, const Acc* d, int64_t size, Acc factor, Acc* da, Acc* dd) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const Acc along = factor * where(a[i] != d[i], a[i] - d[i]);
    da[i] += along;
    dd[i] -= along;
  }
}

// L rows of the objective in scratch memory.
template <class Acc, int L>
struct ObjectiveRows {
  const MeanTeacherLoss& args;
  int64_t first;
  int lanes;
  double class_scale;  // 1 / rows, or 1 / labeled rows
  Acc *a, *d, *b;      // d is a where there is one head
  Acc *ea, *eb;        // of the consistency's pair
  Acc *da, *dd;        // gradients; null where nobody needs them, and dd is da where there is one head
  int64_t labels[L];

  double row_scale() const { return 1.0 / static_cast<double>(args.rows); }

  template <class Loss>
  void add_consistency(Totals& totals) {
    Consistency pair{};
    pair.student_scale = pair.teacher_scale = 1;
    pair.reduction = Reduction::sum;
    Block<Acc, L> block{d, b, ea, eb, args.classes, 1, 1, {}, {}};
    LossRow rows[L];
    double losses[L];
    for (LossRow& row : rows) {
      row = LossRow{};
      row.classes = args.classes;
      row.weight = args.consistency_weight.get() * row_scale();
    }
    run_block<Loss>(pair, block, rows, dd, static_cast<Acc*>(nullptr), losses);
    std::copy_n(losses, lanes, totals.consistency_losses + first);
    if (d == a) add_class(block, rows, totals);
  }

  // The class head's own exponentials, where it is not the head that agrees with the teacher.
  void add_labels(Totals& totals) {
    if (std::all_of(labels, labels + L, [](int64_t label) { return label == kNoLabel; })) {
      std::fill_n(totals.class_losses + first, lanes, 0.0);
      return;
    }
    Block<Acc, L> block{a, a, ea, eb, args.classes, 1, 1, {}, {}};
    LossRow rows[L];
    Sums sums[L] = {};
    maxima(block);
    for (int lane = 0; lane < L; ++lane) block.ma[lane] = block.mb[lane] = finite_max(block.ma[lane]);
    for_each_block<Acc, L>(args.classes, [&](int64_t begin, int64_t end) {
      add_exponentials<NoCross, Acc>(block, begin, end, sums);
    });
    for (int lane = 0; lane < L; ++lane) rows[lane].take(sums[lane]);
    add_class(block, rows, totals);
  }

  void add_class(const Block<Acc, L>& block, const LossRow (&rows)[L], Totals& totals) {
    Acc factor[L] = {};
    bool any = false;
    for (int lane = 0; lane < lanes; ++lane) {
      double& loss = totals.class_losses[first + lane] = 0;
      if (labels[lane] == kNoLabel) continue;
      const double za = rows[lane].za;
      count(lane, totals);
      if (za == 0) continue;  // -inf throughout
      loss = class_scale * (std::log(za) - (a[labels[lane] * L + lane] - block.ma[lane]));
      factor[lane] = static_cast<Acc>(class_scale / za);
      any = true;
    }
    if (!da || !any) return;
    add_scaled(ea, factor, args.classes, da);
    for (int lane = 0; lane < lanes; ++lane) {
      if (factor[lane] != 0) da[labels[lane] * L + lane] -= static_cast<Acc>(class_scale);
    }
  }

  void count(int lane, Totals& totals) const {
    const int64_t of_student = rank_of<Acc, L>(a, labels[lane], lane, args.classes),
                  of_teacher = rank_of<Acc, L>(b, labels[lane], lane, args.classes);
    totals.counts[kLabeled] += 1;
    totals.counts[kStudentTop1] += of_student < 1, totals.counts[kStudentTop5] += of_student < 5;
    totals.counts[kTeacherTop1] += of_teacher < 1, totals.counts[kTeacherTop5] += of_teacher < 5;
  }

  // A row that is -inf throughout in one head has no distance.
  bool masked(int lane) const {
    constexpr Acc kNone = -std::numeric_limits<Acc>::infinity();
    return masked_side(a, kNone, args.classes, L, lane) || masked_side(d, kNone, args.classes, L, lane);
  }

  void add_distances(Totals& totals) {
    const double cost = args.logit_distance_cost.get(),
                 scale = row_scale() / static_cast<double>(args.classes);
    std::fill_n(totals.distances + first, lanes, 0.0);
    if (cost == 0) return;
    double squares[kLanes] = {};
    bool counted[L];
    add_squares(a, d, args.classes * L, squares);
    if (L == 1) squares[0] = std::accumulate(squares, squares + kLanes, 0.0);
    for (int lane = 0; lane < lanes; ++lane) {
      counted[lane] = std::isfinite(squares[lane]) || !masked(lane);
      if (counted[lane]) totals.distances[first + lane] = cost * scale * squares[lane];
    }
    if (!da) return;
    const Acc factor = static_cast<Acc>(2 * cost * scale);
    if (std::all_of(counted, counted + lanes, [](bool row) { return row; })) {
      return add_along(a, d, args.classes * L, factor, da, dd);
    }
    for (int64_t i = 0; i < args.classes * L; ++i) {
      if (const int64_t lane = i % L; lane < lanes && counted[lane])
        add_along(a + i, d + i, 1, factor, da + i, dd + i);
    }
  }
};

// Rows [begin, end), L at a time. scratch: [kBuffers, L, classes].
template <class Loss, class Acc, int L>
void run_objective(const MeanTeacherLoss& args, double class_scale, int64_t begin, int64_t end, Acc* scratch,
                   Totals& totals) {
  const int64_t size = args.classes * L;
  const bool two = args.second.data;
  for (int64_t first = begin; first < end; first += L) {
    const int lanes = static_cast<int>(std::min<int64_t>(L, end - first));
    const auto read = [&](const Operand& operand, int buffer) {
      const RowsOf<L> rows(operand, args.row_sizes, first, lanes, args.classes);
      Acc* at = rows.template in_place<Acc>();
      if (!at) rows.gather(at = scratch + buffer * size);
      return at;
    };
    Acc* const a = read(args.student, 0);
    Acc* const da = args.dstudent.data ? scratch + 5 * size : nullptr;
    ObjectiveRows<Acc, L> rows{args,
                               first,
                               lanes,
                               class_scale,
                               a,
                               two ? read(args.second, 1) : a,
                               read(args.teacher, 2),
                               scratch + 3 * size,
                               scratch + 4 * size,
                               da,
                               two && da ? scratch + 6 * size : da,
                               {}};
    for (int lane = 0; lane < L; ++lane)
      rows.labels[lane] = lane < lanes ? label_of(args, first + lane) : kNoLabel;
    rows.template add_consistency<Loss>(totals);
    if (two && da) std::fill_n(da, size, Acc(0));
    if (two) rows.add_labels(totals), rows.add_distances(totals);
    const auto write = [&](const Operand& operand, const Acc* from) {
      if (operand.data) RowsOf<L>(operand, args.row_sizes, first, lanes, args.classes).scatter(from);
    };
    write(args.dstudent, rows.da), write(args.dsecond, rows.dd);
  }
}

// The largest label count first: what class_loss is divided by.
double class_scale_of(const MeanTeacherLoss& args) {
  int64_t labeled = args.rows;
  if (args.by_labeled) {
    labeled = 0;
    for (int64_t row = 0; row < args.rows; ++row) labeled += label_of(args, row) != kNoLabel;
  }
  return labeled > 0 ? 1.0 / static_cast<double>(labeled) : 0;
}

template <class Loss, class Acc>
void run_shares(const MeanTeacherLoss& args) {
  const bool tiled = in_tiles(args.classes, args.student, args.teacher);
  const size_t rows = static_cast<size_t>(args.rows);
  std::vector<double> losses(3 * rows, 0.0);
  const int64_t unit = tiled ? kLanes : 1, units = (args.rows + unit - 1) / unit;
  const int64_t scratch_size = kBuffers * args.classes * unit;
  const int threads = threads_for(args.rows * args.classes, kLogitsPerThread);
  const std::unique_ptr<Acc[]> scratch(new Acc[static_cast<size_t>(scratch_size * threads)]);
  std::vector<Totals> totals(static_cast<size_t>(threads),
                             Totals{losses.data(), losses.data() + rows, losses.data() + 2 * rows});
  const double class_scale = class_scale_of(args);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    const int64_t begin = units * thread / threads * unit;
    const int64_t end = std::min(args.rows, units * (thread + 1) / threads * unit);
    Acc* own = scratch.get() + scratch_size * thread;
    Totals& share = totals[static_cast<size_t>(thread)];
    tiled ? run_objective<Loss, Acc, kLanes>(args, class_scale, begin, end, own, share)
          : run_objective<Loss, Acc, 1>(args, class_scale, begin, end, own, share);
  }
  double total = 0;
  for (size_t part = 0; part < 3; ++part) {
    const double sum = sum_pairwise(losses.data() + part * rows, rows);
    static_cast<Acc*>(args.parts)[part] = static_cast<Acc>(sum);
    total += sum;
  }
  *static_cast<Acc*>(args.total) = static_cast<Acc>(total);
  std::fill_n(args.counts, kCounts, int64_t{0});
  for (const Totals& share : totals) {
    for (int k = 0; k < kCounts; ++k) args.counts[k] += share.counts[k];
  }
}

template <class Acc>
void run_as(const MeanTeacherLoss& args) {
  args.kl ? run_shares<SoftmaxKl, Acc>(args) : run_shares<SoftmaxMse, Acc>(args);
}

}  // namespace

void mean_teacher_loss_cpu(const MeanTeacherLoss& args) {
  args.doubles() ? run_as<double>(args) : run_as<float>(args);
}

}  // namespace mtk
