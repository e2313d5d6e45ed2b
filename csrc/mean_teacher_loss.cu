// mean_teacher_loss on CUDA: one launch. Where class_loss is normalised by the labeled rows, gradients need
// their number first: every block counts them for itself, or, of many rows, a small launch before does.
#include "mean_teacher_loss.h"

#include "consistency.cuh"

namespace mtk {
namespace {

constexpr const char* kOp = "mean_teacher_loss";
constexpr int64_t kCountedInBlock = 2048;  // rows: 16 kB of labels, read by each block
constexpr int kBlocksPerSm = 2;

enum Part { kClass = 0, kConsistency, kDistance, kParts };
enum OwnSum { kCross = 0, kSquares, kStudentRank, kTeacherRank, kOwnSums };

__device__ int64_t label_of(const MeanTeacherLoss& args, int64_t row) {
  Operand rows{};
#pragma unroll
  for (int dim = 0; dim < kMaxRowDims; ++dim) rows.row_strides[dim] = args.labels.row_strides[dim];
  const int64_t at = row_offset(rows, args.row_sizes, row);
  return args.labels.wide ? static_cast<const int64_t*>(args.labels.data)[at]
                          : static_cast<const int32_t*>(args.labels.data)[at];
}

// What all rows share.
struct Scales {
  double of_rows, of_classes;  // 1 / rows; what a row's class loss is multiplied by
  double consistency, distance;
};

// One row of the objective. Side 0 is the class head, 1 the teacher, kHead the head that agrees with the
// teacher.
template <class Acc, int kSides>
struct ObjectiveRow {
  static constexpr int kSums = kOwnSums, kHead = kSides == 3 ? 2 : 0;
  static constexpr bool kLooks = false;
  using OneClass = Class<Acc, kSides>;
  bool kl, labeled = false, invalid = false;
  int label = kNoClass;
  Acc own[2] = {0, 0};  // the label's logits
  Sides<Acc> sides;     // of kHead and the teacher
  Acc inverse_class = 0, lead = 0;
  Quotient<Acc> along;  // mean of z1 (p - q) along the probabilities of kHead
  Acc by_class = 0, by_consistency = 0, by_distance = 0;  // what gradients are multiplied by

  __device__ ObjectiveRow(const MeanTeacherLoss& args, const Logits<Acc, kSides>& logits, int64_t row)
      : kl(args.kl) {
    if (row >= args.rows) return;
    const int64_t given = label_of(args, row);
    labeled = given != args.ignore_index;
    invalid = labeled && (given < 0 || given >= args.classes);
    if (!labeled || invalid) return;
    label = static_cast<int>(given);
#pragma unroll
    for (int s = 0; s < 2; ++s)
      own[s] = element<Acc>(logits.sides[s],
                            logits.offset(logits.sides[s], row) + label * logits.sides[s].class_stride);
  }
  __device__ bool has_label() const { return label != kNoClass; }

  __device__ Acc distance(const OneClass& c) const {
    return kSides == 2 || c.logit[0] == c.logit[kHead] ? Acc(0) : c.logit[0] - c.logit[kHead];
  }
  __device__ void add(const OneClass& c, Acc* sums) const {
    if (kl) sums[kCross] += c.e[1] != 0 ? c.e[1] * (c.x[1] - c.x[kHead]) : Acc(0);
    const Acc d = distance(c);
    sums[kSquares] += d * d;
    if (!has_label()) return;
#pragma unroll
    for (int s = 0; s < 2; ++s)
      sums[kStudentRank + s] += c.logit[s] > own[s] || (c.logit[s] == own[s] && c.index < label);
  }
  __device__ void recenter(const double* z, const double* down, const double* factor, double* sums) const {
    const double moved = z[1] != 0 ? sums[kCross] - z[1] * (down[1] - down[kHead]) : sums[kCross];
    sums[kCross] = factor[1] != 0 ? factor[1] * moved : 0.0;
  }
  // of the consistency's mean square, with d = z1 (p - q): sums of d^2, of e d
  __device__ void add_terms(const OneClass& c, Acc* terms) const {
    const Acc d = sides.difference(c.e[kHead], c.e[1]);
    terms[0] += d * d;
    terms[1] += c.e[kHead] * d;
  }

  __device__ static void see(const OneClass&) {}
  template <int side>
  __device__ Acc of(const OneClass& c) const {
    Acc sum = 0;
    if (side == 0 && by_class != 0) sum += by_class * (inverse_class * c.e[0] - (c.index == label));
    if (side == kHead && by_consistency != 0) {
      const Acc d = sides.difference(c.e[kHead], c.e[1]);
      sum += by_consistency * lead * (kl ? d : c.e[kHead] * along.subtracted(d, 0));
    }
    if (kSides == 3 && by_distance != 0) sum += (side == 0 ? by_distance : -by_distance) * distance(c);
    return sum;
  }
};

// A thread's share of the results.
struct ObjectiveTotals {
  double losses[kParts] = {};
  int counts[kCounts] = {};  // a thread has fewer rows than 2^31

  template <class Acc, int kSides>
  __device__ void count(const ObjectiveRow<Acc, kSides>& row, const double* own) {
    constexpr int kRank[] = {1, 5};
    counts[kLabeled] += row.labeled;
    if (!row.has_label()) return;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int k = 0; k < 2; ++k)
        counts[kStudentTop1 + 2 * s + k] += row.own[s] == row.own[s] && own[kStudentRank + s] < kRank[k];
    }
  }
  template <class Acc>
  __device__ void finish(const MeanTeacherLoss& args, const Scales& scales, const Scratch& scratch) {
    double sums[kParts + kCounts];
#pragma unroll
    for (int k = 0; k < kParts + kCounts; ++k)
      sums[k] = k < kParts ? losses[k] : static_cast<double>(counts[k - kParts]);
    if (!grid_sum(sums, scratch) || threadIdx.x != 0) return;
    const double parts[kParts] = {
        sums[kClass] * scales.of_classes,
        scales.consistency == 0 ? 0 : sums[kConsistency] * scales.of_rows * scales.consistency,
        scales.distance == 0 ? 0 : sums[kDistance] * scales.of_rows * scales.distance};
    for (int k = 0; k < kParts; ++k) static_cast<Acc*>(args.parts)[k] = static_cast<Acc>(parts[k]);
    *static_cast<Acc*>(args.total) = static_cast<Acc>(parts[0] + parts[1] + parts[2]);
    for (int k = 0; k < kCounts; ++k) args.counts[k] = static_cast<int64_t>(sums[kParts + k]);
  }
};

// One row, by its group. `losses`, on each of its threads: the row's share of each part, before the scales.
template <class F, int kSides, bool kCached, class Group>
__device__ void run_objective(const MeanTeacherLoss& args, const Logits<typename F::Acc, kSides>& logits,
                              const Scales& scales, Group& group, int64_t index, ObjectiveTotals& totals) {
  using Acc = typename F::Acc;
  constexpr int kHead = ObjectiveRow<Acc, kSides>::kHead;
  RowPart<F, kSides, Group, kCached, true> part(logits, group, index);
  ObjectiveRow<Acc, kSides> row(args, logits, index);
  double sums[kSides + kOwnSums], losses[kParts] = {};
  part.sums(group, row, sums);
  const double classes = static_cast<double>(args.classes), z0 = sums[0], z1 = sums[1], head = sums[kHead];
  const double* const own = sums + kSides;
  if (row.invalid) losses[kClass] = static_cast<double>(NAN), row.by_class = static_cast<Acc>(NAN);
  if (row.has_label() && z0 != 0) {
    losses[kClass] = logarithm(z0) - static_cast<double>(part.scaled(0, row.own[0]));
    row.inverse_class = static_cast<Acc>(1 / z0);
    row.by_class = static_cast<Acc>(scales.of_classes);
  }
  row.sides.set(head, z1);
  const bool agrees = head != 0 && z1 != 0;
  if (args.kl) {
    if (agrees) losses[kConsistency] = own[kCross] / z1 + logarithm(head / z1);
    row.lead = row.sides.inverse[1];
  } else {
    double terms[2];
    part.terms(group, [&](const Class<Acc, kSides>& c, Acc* sums) { row.add_terms(c, sums); }, terms);
    if (agrees) losses[kConsistency] = terms[0] / (classes * z1 * z1);
    row.lead = static_cast<Acc>(2 / (classes * head * z1));
    row.along.set(terms[1], head);
  }
  row.by_consistency = agrees ? static_cast<Acc>(scales.consistency * scales.of_rows) : Acc(0);
  const bool apart = z0 != 0 && head != 0;  // neither head is -inf throughout
  losses[kDistance] = apart ? own[kSquares] / classes : 0;
  row.by_distance = apart ? static_cast<Acc>(2 * scales.distance * scales.of_rows / classes) : Acc(0);
  if (args.dstudent.data) part.write(row);
  if (group.rank != 0 || index >= args.rows) return;
#pragma unroll
  for (int k = 0; k < kParts; ++k) totals.losses[k] += losses[k];
  totals.count(row, own);
}

__device__ double count_labels(const MeanTeacherLoss& args, int64_t first, int64_t step) {
  double count = 0;
  for (int64_t row = first; row < args.rows; row += step) count += label_of(args, row) != args.ignore_index;
  return count;
}

template <class F, int kSides, bool kCached>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm)
    mean_teacher_loss_kernel(const MeanTeacherLoss args, const Logits<typename F::Acc, kSides> logits,
                             const Sharing sharing, const int cluster) {
  Scales scales{1 / static_cast<double>(args.rows), 0, args.consistency_weight.get(),
                args.logit_distance_cost.get()};
  scales.of_classes = scales.of_rows;
  if (args.by_labeled) {
    const double labeled = args.rows > kCountedInBlock
                               ? *sharing.scratch.kept
                               : block_sum(count_labels(args, threadIdx.x, static_cast<int64_t>(blockDim.x)));
    scales.of_classes = labeled > 1 ? 1 / labeled : 1;
  }
  Group<kGroupHeader<kSides + kOwnSums>> group(sharing.group, cluster);
  const RowsOfBlock rows(sharing, cluster);
  ObjectiveTotals totals;
  for (int64_t first = rows.first; first < args.rows; first += rows.step)
    run_objective<F, kSides, kCached>(args, logits, scales, group, first + rows.within, totals);
  totals.finish<typename F::Acc>(args, scales, sharing.scratch);
}

__global__ void count_labels_kernel(const MeanTeacherLoss args, const Scratch scratch) {
  const int64_t threads = static_cast<int64_t>(blockDim.x);
  double count[1] = {count_labels(args, blockIdx.x * threads + threadIdx.x, gridDim.x * threads)};
  if (grid_sum(count, scratch) && threadIdx.x == 0) *scratch.kept = count[0];
}

// ---- host

template <class Acc, int kSides>
Logits<Acc, kSides> objective_logits(const MeanTeacherLoss& args) {
  Logits<Acc, kSides> logits{};
  const Operand* const sides[] = {&args.student, &args.teacher, &args.second};
  const Operand* const gradients[] = {&args.dstudent, nullptr, &args.dsecond};
  for (int s = 0; s < kSides; ++s) {
    logits.sides[s] = *sides[s];
    if (gradients[s]) logits.gradients[s] = *gradients[s];
    logits.multipliers[s] = multiplier_of<Acc>(1);
    logits.scales[s] = 1;
  }
  logits.rows = args.rows, logits.classes = args.classes;
  std::copy_n(args.row_sizes, kMaxRowDims, logits.row_sizes);
  logits.one_dim = args.row_sizes[0] == 1 && args.row_sizes[1] == 1 && args.row_sizes[2] == 1;
  return logits;
}

template <class F, int kSides>
void launch_objective(const MeanTeacherLoss& args, const Logits<typename F::Acc, kSides>& logits) {
  LaunchShape shape{0, 0, 0, args.stream};
  const auto cached = mean_teacher_loss_kernel<F, kSides, true>,
             streaming = mean_teacher_loss_kernel<F, kSides, false>;
  const DeviceLimits limits = device_limits(args.device, kOp);
  const SharingChoice<F, kSides, kGroupHeader<kSides + kOwnSums>> choice(logits, limits, args.device, kOp);
  Sharing sharing = choice.choose(cached, streaming, shape);
  const bool counts = args.by_labeled && args.rows > kCountedInBlock;
  const LaunchShape counting{std::min<int64_t>(limits.sms, ceil_div(args.rows, kMaxThreads)), kMaxThreads,
                             kSharedHeader, args.stream};
  sharing.scratch =
      scratch_of(args.device, args.stream, std::max(shape.blocks, counts ? counting.blocks : 0), kOp);
  if (counts) launch(kOp, count_labels_kernel, counting, args, sharing.scratch);
  launch(kOp, sharing.cached ? cached : streaming, shape, args, logits, sharing, shape.cluster);
}

template <int kSides>
void launch_heads(const MeanTeacherLoss& args) {
  if (args.doubles())
    return launch_objective<Format<double, 0, 1, false>>(args, objective_logits<double, kSides>(args));
  const auto logits = objective_logits<float, kSides>(args);
  if (args.classes > kFewClasses && in_phase(logits, 4))
    return launch_objective<Format<float, 0, 4, false>>(args, logits);
  return launch_objective<Format<float, 0, 1, false>>(args, logits);
}

}  // namespace

void mean_teacher_loss_cuda(const MeanTeacherLoss& args) {
  const DeviceGuard guard(args.device, kOp);
  check_classes(args.classes, kOp);
  if (args.rows > 0) return args.second.data ? launch_heads<3>(args) : launch_heads<2>(args);
  const int64_t bytes = args.doubles() ? sizeof(double) : sizeof(float);
  clear(args.total, bytes, args.stream, kOp);
  clear(args.parts, kParts * bytes, args.stream, kOp);
  clear(args.counts, kCounts * static_cast<int64_t>(sizeof(int64_t)), args.stream, kOp);
}

}  // namespace mtk
