// nonfinite_ on the CPU: each thread looks at an equal share of the table's elements.
#include "nonfinite.h"

#include <algorithm>

#include "cpu.h"

namespace mtk {
namespace {

constexpr int64_t kGrain = 32 * 1024;  // elements that pay for one more thread

// x - x is 0 where x is finite, else NaN: the sum of them tells, and vectorises.
template <class T>
MTK_INLINE bool any_nonfinite(const T* x, int64_t count) {
  Accumulator<T, T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const Accumulator<T, T> value = widen(x[i]);
    sum += value - value;
  }
  return sum != 0;
}

template <int dtype>
MTK_INLINE bool look_from(const Row& row, int64_t start, int64_t count) {
  if constexpr (dtype < kDtypes) {
    using T = typename TypeOf<static_cast<Dtype>(dtype)>::type;
    if (row.code == row_code(kAverage, static_cast<Dtype>(dtype), static_cast<Dtype>(dtype)))
      return any_nonfinite(reinterpret_cast<const T*>(row.src) + start, count);
    return look_from<dtype + 1>(row, start, count);
  }
  return false;
}

// Elements [begin, end) of the whole table, counted row after row.
MTK_CPU_CLONES bool look_at_share(const Table& table, int64_t begin, int64_t end) {
  int64_t row_begin = 0;
  for (int64_t i = 0; row_begin < end; row_begin += table.row(i).count, ++i) {
    const int64_t start = std::max<int64_t>(begin - row_begin, 0);
    const int64_t count = std::min(end - row_begin, table.row(i).count) - start;
    if (count > 0 && look_from<0>(table.row(i), start, count)) return true;
  }
  return false;
}

}  // namespace

void nonfinite_cpu(const Nonfinite& args) {
  const Table table = args.plan->table();
  const int64_t count = args.plan->count;
  const int threads = threads_for(count, kGrain);
  int found = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : found)
  for (int thread = 0; thread < threads; ++thread) {
    found |= look_at_share(table, count * thread / threads, count * (thread + 1) / threads);
  }
  if (found) *args.found = 1.0f;
}

}  // namespace mtk
