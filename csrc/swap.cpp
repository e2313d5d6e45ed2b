// swap_ on the CPU: each thread swaps an equal share of the table's elements.
#include "swap.h"

#include <algorithm>

#include "cpu.h"

namespace mtk {
namespace {

constexpr int64_t kGrain = 32 * 1024;  // elements that pay for one more thread

template <class T>
MTK_INLINE void swap_run(T* a, T* b, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T kept = a[i];
    a[i] = b[i];
    b[i] = kept;
  }
}

// Elements [begin, end) of the whole table, counted row after row.
MTK_CPU_CLONES void swap_share(const Table& table, int64_t begin, int64_t end) {
  int64_t row_begin = 0;
  for (int64_t i = 0; row_begin < end; row_begin += table.row(i).count, ++i) {
    const Row& row = table.row(i);
    const int64_t start = std::max<int64_t>(begin - row_begin, 0);
    const int64_t count = std::min(end - row_begin, row.count) - start;
    if (count <= 0) continue;
    if (row.code == kCopyWords) {
      swap_run(reinterpret_cast<uint32_t*>(table.targets(i)->dst) + start,
               reinterpret_cast<uint32_t*>(row.src) + start, count);
    } else {
      swap_run(reinterpret_cast<uint8_t*>(table.targets(i)->dst) + start,
               reinterpret_cast<uint8_t*>(row.src) + start, count);
    }
  }
}

}  // namespace

void swap_cpu(const Swap& args) {
  const Table table = args.plan->table();
  const int64_t count = args.plan->count;
  const int threads = threads_for(count, kGrain);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    swap_share(table, count * thread / threads, count * (thread + 1) / threads);
  }
}

}  // namespace mtk
