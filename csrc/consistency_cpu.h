// The CPU side of consistency.h: logits are brought to accumulators in scratch memory, then handed to the
// loss, either one row at a time (the vector along the classes) or kLanes rows at a time (across the rows:
// few or strided classes). The loops are leaf functions with clones for each instruction set; what calls them
// is compiled once.
#pragma once
#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "consistency.h"
#include "cpu.h"
#include "vec.h"

namespace mtk {

constexpr int kLanes = 16;            // rows of a tile
constexpr int64_t kTileClasses = 64;  // contiguous rows shorter than this go in tiles
constexpr int64_t kTileStrided =
    4096;  // strided rows go in tiles up to this many classes: 0.5 MB, about an L2
constexpr int64_t kLogitsPerThread = 8 * 1024;  // fewer do not pay for one more thread

// Classes of a row summed in the accumulator before an fp64 sum takes over; exp in fp64 is scalar, so its
// blocks are short.
template <class Acc>
constexpr int64_t kBlock = sizeof(Acc) == 4 ? 1024 : 32;

// A row, or a tile of kLanes rows with (class c, lane) at c * kLanes + lane.
// a, b: logits of student and teacher; ea, eb: room for exp(logit - max), which may be a and b; gradient may
// be ea.
template <class Acc>
struct Rows {
  const Acc *a, *b;
  Acc *ea, *eb;
  Acc* gradient;  // null when nobody needs it
  int64_t classes;
  double scale;  // of the gradient: 1 / rows under "mean"
};

// Of one row: sums of exp(a - max a) and of exp(b - max b); cross = sum of exp(b - max b) * ((b - max b) - (a
// - max a)).
struct RowSums {
  double za, zb, cross;

  bool masked() const { return za == 0 || zb == 0; }  // -inf throughout; NaN is not masked
  // Both 0 for a masked row.
  double ratio() const { return masked() ? 0 : zb / za; }
  double inverse_za() const { return masked() ? 0 : 1 / za; }
  double inverse_zb() const { return masked() ? 0 : 1 / zb; }
};

// zb * (p - q) = ea * (zb / za) - eb: exactly 0 for equal sides, however the compiler contracts it. The ratio
// is kept in two parts: its rounding would be the same for a whole row and not average out over the classes.
template <class Acc>
struct Ratio {
  Acc high, low;

  explicit Ratio(const RowSums& sums)
      : high(static_cast<Acc>(sums.ratio())),
        low(static_cast<Acc>(sums.ratio() - static_cast<double>(high))) {}
  MTK_INLINE Acc difference(Acc ea, Acc eb) const { return (ea * high - eb) + ea * low; }
};

// The same for a tile's lanes, laid out for the vector loop.
template <class Acc>
struct TileRatio {
  Acc high[kLanes], low[kLanes];

  explicit TileRatio(const RowSums* sums) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const Ratio<Acc> ratio(sums[lane]);
      high[lane] = ratio.high, low[lane] = ratio.low;
    }
  }
  MTK_INLINE Acc difference(Acc ea, Acc eb, int lane) const {
    return (ea * high[lane] - eb) + ea * low[lane];
  }
};

template <class Acc>
Acc finite_max(Acc max) {
  return max == -std::numeric_limits<Acc>::infinity() ? Acc(0) : max;
}

// max a and max b; 0 for a row that is -inf throughout. x > m ? x : m vectorises in a reduction where
// std::max does not; the two halves of both rows are four chains that do not wait for each other (one chain:
// 0.15 ns a logit, four: 0.05).
template <class Acc>
MTK_CPU_CLONES static void row_max(const Acc* a, const Acc* b, int64_t classes, Acc* max_a, Acc* max_b) {
  const int64_t half = classes / 2;
  Acc a0 = a[classes - 1], a1 = a0, b0 = b[classes - 1], b1 = b0;
#pragma omp simd reduction(max : a0, a1, b0, b1)
  for (int64_t c = 0; c < half; ++c) {
    a0 = a[c] > a0 ? a[c] : a0;
    a1 = a[half + c] > a1 ? a[half + c] : a1;
    b0 = b[c] > b0 ? b[c] : b0;
    b1 = b[half + c] > b1 ? b[half + c] : b1;
  }
  *max_a = finite_max(a0 > a1 ? a0 : a1);
  *max_b = finite_max(b0 > b1 ? b0 : b1);
}

// Terms of one sign: a block of them adds up in the accumulator. Sums whose terms cancel are fp64 throughout.
template <bool kCross, class Acc>
MTK_CPU_CLONES static RowSums block_exponentials(const Acc* a, const Acc* b, Acc* ea, Acc* eb, Acc ma, Acc mb,
                                                 int64_t count) {
  Acc za = 0, zb = 0, cross = 0;
#pragma omp simd reduction(+ : za, zb, cross)
  for (int64_t c = 0; c < count; ++c) {
    const Acc x = a[c] - ma, y = b[c] - mb;
    const Acc ex = exp_nonpositive(x), ey = exp_nonpositive(y);
    ea[c] = ex;
    eb[c] = ey;
    za += ex;
    zb += ey;
    if (kCross) cross += ey * where(ey != 0, y - x);
  }
  return {za, zb, cross};
}

// Fills ea and eb and adds up; `cross` only where kCross.
template <bool kCross, class Acc>
RowSums exponentials(const Rows<Acc>& row) {
  Acc ma, mb;
  row_max(row.a, row.b, row.classes, &ma, &mb);
  RowSums sums{0, 0, 0};
  for (int64_t c = 0; c < row.classes; c += kBlock<Acc>) {
    const RowSums block = block_exponentials<kCross>(row.a + c, row.b + c, row.ea + c, row.eb + c, ma, mb,
                                                     std::min(kBlock<Acc>, row.classes - c));
    sums.za += block.za, sums.zb += block.zb, sums.cross += block.cross;
  }
  return sums;
}

// The same for a tile; each lane's sums go to sums[lane].
template <bool kCross, class Acc>
MTK_CPU_CLONES static void tile_exponentials(const Rows<Acc>& tile, RowSums* sums) {
  const int64_t size = tile.classes * kLanes;
  const Acc *a = tile.a, *b = tile.b;
  Acc *ea = tile.ea, *eb = tile.eb;
  Acc ma[kLanes], mb[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) ma[lane] = mb[lane] = -std::numeric_limits<Acc>::infinity();
  for (int64_t i = 0; i < size; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      ma[lane] = a[i + lane] > ma[lane] ? a[i + lane] : ma[lane];
      mb[lane] = b[i + lane] > mb[lane] ? b[i + lane] : mb[lane];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) ma[lane] = finite_max(ma[lane]), mb[lane] = finite_max(mb[lane]);
  double za[kLanes] = {}, zb[kLanes] = {}, cross[kLanes] = {};
  for (int64_t i = 0; i < size; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const Acc x = a[i + lane] - ma[lane], y = b[i + lane] - mb[lane];
      const Acc ex = exp_nonpositive(x), ey = exp_nonpositive(y);
      ea[i + lane] = ex;
      eb[i + lane] = ey;
      za[lane] += ex;
      zb[lane] += ey;
      if (kCross) cross[lane] += ey * where(ey != 0, y - x);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = {za[lane], zb[lane], cross[lane]};
}

// Loss 0 and gradient 0, whatever the other side holds.
template <class Acc>
double masked_row(const Rows<Acc>& row) {
  if (row.gradient) std::fill_n(row.gradient, row.classes, Acc(0));
  return 0;
}

template <class Acc>
void clear_masked(const Rows<Acc>& tile, const RowSums* sums, double* losses) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!sums[lane].masked()) continue;
    losses[lane] = 0;
    for (int64_t c = 0; tile.gradient && c < tile.classes; ++c) tile.gradient[c * kLanes + lane] = 0;
  }
}

// Copies classes x lanes logits between an operand and class-major accumulators; lanes past the last row hold
// 0.
template <class T, class Acc>
MTK_CPU_CLONES static void gather_as(const Operand& operand, const int64_t* offsets, int lanes, int width,
                                     int64_t classes, Acc* to) {
  const T* from = static_cast<const T*>(operand.data);
  if (width == 1 && operand.class_stride == 1) {
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) to[c] = static_cast<Acc>(widen(from[offsets[0] + c]));
    return;
  }
  if (operand.class_stride == 1) {
    for (int lane = 0; lane < width; ++lane) {
      const T* row = from + offsets[lane < lanes ? lane : 0];
#pragma GCC unroll 8
      for (int64_t c = 0; c < classes; ++c) to[c * width + lane] = static_cast<Acc>(widen(row[c]));
    }
    return;
  }
  for (int64_t c = 0; c < classes; ++c) {
    for (int lane = 0; lane < lanes; ++lane) {
      to[c * width + lane] = static_cast<Acc>(widen(from[offsets[lane] + c * operand.class_stride]));
    }
    for (int lane = lanes; lane < width; ++lane) to[c * width + lane] = 0;
  }
}

template <class T, class Acc>
MTK_CPU_CLONES static void scatter_as(const Acc* from, const Operand& operand, const int64_t* offsets,
                                      int lanes, int width, int64_t classes) {
  T* to = static_cast<T*>(operand.data);
  if (width == 1 && operand.class_stride == 1) {
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(&to[offsets[0] + c], from[c]);
    return;
  }
  if (operand.class_stride == 1) {
    for (int lane = 0; lane < lanes; ++lane) {
      T* row = to + offsets[lane];
#pragma GCC unroll 8
      for (int64_t c = 0; c < classes; ++c) store(&row[c], from[c * width + lane]);
    }
    return;
  }
  for (int64_t c = 0; c < classes; ++c) {
    for (int lane = 0; lane < lanes; ++lane) {
      store(&to[offsets[lane] + c * operand.class_stride], from[c * width + lane]);
    }
  }
}

template <class Acc>
void gather(const Operand& operand, const int64_t* offsets, int lanes, int width, int64_t classes, Acc* to) {
  visit(operand.dtype,
        [&](auto type) { gather_as<decltype(type)>(operand, offsets, lanes, width, classes, to); });
}

template <class Acc>
void scatter(const Acc* from, const Operand& operand, const int64_t* offsets, int lanes, int width,
             int64_t classes) {
  visit(operand.dtype,
        [&](auto type) { scatter_as<decltype(type)>(from, operand, offsets, lanes, width, classes); });
}

// The operand's row in place, where it lies there as accumulators; else null.
template <class Acc>
Acc* in_place(const Operand& operand, int64_t offset) {
  const bool same =
      operand.dtype == (sizeof(Acc) == 8 ? Dtype::f64 : Dtype::f32) && operand.class_stride == 1;
  return operand.data && same ? static_cast<Acc*>(operand.data) + offset : nullptr;
}

inline bool in_tiles(const Consistency& args) {
  const bool contiguous = args.student.class_stride == 1 && args.teacher.class_stride == 1;
  return args.classes < (contiguous ? kTileClasses : kTileStrided);
}

// Rows [begin, end): their losses to losses[row], their gradients to dstudent. scratch: [4, kLanes or 1,
// classes].
template <class Loss, class Acc>
void run_tiles(const Consistency& args, int64_t begin, int64_t end, Acc* scratch, double* losses) {
  const int64_t size = args.classes * kLanes;
  Acc *a = scratch, *b = scratch + size;
  const Rows<Acc> tile{a, b, a, b, args.dstudent.data ? a : nullptr, args.classes, args.row_scale()};
  for (int64_t row = begin; row < end; row += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, end - row));
    int64_t student[kLanes], teacher[kLanes], dstudent[kLanes];
    for (int lane = 0; lane < lanes; ++lane) {
      const RowOffsets offsets = row_offsets(args, row + lane);
      student[lane] = offsets.student, teacher[lane] = offsets.teacher, dstudent[lane] = offsets.dstudent;
    }
    gather(args.student, student, lanes, kLanes, args.classes, a);
    gather(args.teacher, teacher, lanes, kLanes, args.classes, b);
    double lane_losses[kLanes];
    Loss::tile(tile, lane_losses);
    for (int lane = 0; lane < lanes; ++lane) losses[row + lane] = lane_losses[lane];
    if (args.dstudent.data) scatter(a, args.dstudent, dstudent, lanes, kLanes, args.classes);
  }
}

template <class Loss, class Acc>
void run_rows(const Consistency& args, int64_t begin, int64_t end, Acc* scratch, double* losses) {
  if (in_tiles(args)) return run_tiles<Loss>(args, begin, end, scratch, losses);
  Acc *a = scratch, *b = a + args.classes, *ea = b + args.classes, *eb = ea + args.classes;
  for (int64_t row = begin; row < end; ++row) {
    const RowOffsets offsets = row_offsets(args, row);
    Rows<Acc> work{in_place<Acc>(args.student, offsets.student),
                   in_place<Acc>(args.teacher, offsets.teacher),
                   in_place<Acc>(args.dstudent, offsets.dstudent),
                   eb,
                   nullptr,
                   args.classes,
                   args.row_scale()};
    if (!work.a) gather(args.student, &offsets.student, 1, 1, args.classes, a), work.a = a;
    if (!work.b) gather(args.teacher, &offsets.teacher, 1, 1, args.classes, b), work.b = b;
    const bool direct = work.ea != nullptr;
    if (!direct) work.ea = ea;
    if (args.dstudent.data) work.gradient = work.ea;
    losses[row] = Loss::row(work);
    if (args.dstudent.data && !direct) scatter(ea, args.dstudent, &offsets.dstudent, 1, 1, args.classes);
  }
}

inline double sum_pairwise(const double* values, size_t count) {
  if (count > 64)
    return sum_pairwise(values, count / 2) + sum_pairwise(values + count / 2, count - count / 2);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// Shares the rows among threads, whole tiles each, and reduces their losses in order: the same bits for any
// thread count.
template <class Loss, class Acc>
void run_threads(const Consistency& args) {
  std::vector<double> losses(static_cast<size_t>(args.rows));
  const int64_t scratch_size = 4 * args.classes * (in_tiles(args) ? kLanes : 1);
  const int64_t tiles = (args.rows + kLanes - 1) / kLanes;
  const int threads = threads_for(args.rows * args.classes, kLogitsPerThread);
  const std::unique_ptr<Acc[]> scratch(new Acc[static_cast<size_t>(scratch_size * threads)]);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    const int64_t begin = tiles * thread / threads * kLanes;
    const int64_t end = std::min(args.rows, tiles * (thread + 1) / threads * kLanes);
    run_rows<Loss>(args, begin, end, scratch.get() + scratch_size * thread, losses.data());
  }
  Acc* loss = static_cast<Acc*>(args.loss);
  if (args.reduction == Reduction::none) {
    for (int64_t row = 0; row < args.rows; ++row) loss[row] = static_cast<Acc>(losses[row]);
  } else {
    *loss = static_cast<Acc>(sum_pairwise(losses.data(), losses.size()) * args.row_scale());
  }
}

template <class Loss>
void consistency_cpu(const Consistency& args) {
  args.doubles() ? run_threads<Loss, double>(args) : run_threads<Loss, float>(args);
}

}  // namespace mtk
