// multi_tensor_dot on the CPU: the table is cut into pieces of one size, which threads share; their sums are
// added up in order.
#include "multi_tensor_dot.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu.h"

namespace mtk {
namespace {

constexpr int64_t kPiece = 32 * 1024;  // elements of a piece: they pay for one more thread
constexpr int64_t kBlock = 512;        // elements that are widened at a time: both sides' lie in the L1
constexpr int kLanes = 32;             // sums that do not wait for each other

struct Sums {
  double dot, first, second;
};

template <bool kNorms>
struct Lanes {
  double dot[kLanes] = {}, first[kLanes] = {}, second[kLanes] = {};

  // count is at most kLanes.
  template <class A, class B>
  MTK_INLINE void add(const A* a, const B* b, int64_t count) {
#pragma omp simd
    for (int64_t lane = 0; lane < count; ++lane) {
      const double x = static_cast<double>(a[lane]), y = static_cast<double>(b[lane]);
      dot[lane] += x * y;
      if (kNorms) first[lane] += x * x, second[lane] += y * y;
    }
  }

  MTK_INLINE static double total(double (&lanes)[kLanes]) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
  }
};

template <bool kNorms, class A, class B>
MTK_INLINE void add_run(const A* a, const B* b, int64_t count, Lanes<kNorms>& lanes) {
  Lanes<kNorms> local = lanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) local.add(a + i, b + i, kLanes);
  local.add(a + i, b + i, count - i);
  lanes = local;
}

template <int dtype>
MTK_INLINE void widen_from(uint64_t address, Dtype of, int64_t start, int64_t count, double* to) {
  if constexpr (dtype < kDtypes) {
    using T = typename TypeOf<static_cast<Dtype>(dtype)>::type;
    if (of != static_cast<Dtype>(dtype)) return widen_from<dtype + 1>(address, of, start, count, to);
    const T* const from = reinterpret_cast<const T*>(address) + start;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<double>(widen(from[i]));
  }
}

// One row of the table of pieces.
template <bool kNorms>
MTK_CPU_CLONES Sums sum_piece(const Table& table, int64_t index) {
  const Row& row = table.row(index);
  const uint64_t address = table.targets(index)->dst;
  Lanes<kNorms> lanes;
  if (row.code == row_code(kAverage, Dtype::f32, Dtype::f32)) {
    add_run(reinterpret_cast<const float*>(address), reinterpret_cast<const float*>(row.src), row.count,
            lanes);
  } else if (row.code == row_code(kAverage, Dtype::f64, Dtype::f64)) {
    add_run(reinterpret_cast<const double*>(address), reinterpret_cast<const double*>(row.src), row.count,
            lanes);
  } else {
    alignas(64) double first[kBlock], second[kBlock];
    for (int64_t start = 0; start < row.count; start += kBlock) {
      const int64_t count = std::min(kBlock, row.count - start);
      widen_from<0>(address, static_cast<Dtype>(row.code / kDtypes), start, count, first);
      widen_from<0>(row.src, static_cast<Dtype>(row.code % kDtypes), start, count, second);
      add_run(first, second, count, lanes);
    }
  }
  return {lanes.total(lanes.dot), lanes.total(lanes.first), lanes.total(lanes.second)};
}

}  // namespace

void multi_tensor_dot_cpu(const MultiTensorDot& args) {
  const Plan pieces = args.plan->chunks(args.plan->count / kPiece + 1);
  const Table table = pieces.table();
  std::vector<Sums> sums(static_cast<size_t>(table.n_rows));
  const int threads = threads_for(pieces.count, kPiece);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < table.n_rows; ++i) {
    sums[static_cast<size_t>(i)] = args.with_norms ? sum_piece<true>(table, i) : sum_piece<false>(table, i);
  }
  Sums total{0, 0, 0};
  for (const Sums& piece : sums) {
    total = {total.dot + piece.dot, total.first + piece.first, total.second + piece.second};
  }
  args.sums[0] = total.dot;
  if (args.with_norms) args.sums[1] = std::sqrt(total.first), args.sums[2] = std::sqrt(total.second);
}

}  // namespace mtk
