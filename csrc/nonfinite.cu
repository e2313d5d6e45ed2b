// nonfinite_ on CUDA: one launch, one block per row of the chunked table. Whoever finds something sets the
// flag.
#include "nonfinite.h"

#include "launch.cuh"

namespace mtk {
namespace {

constexpr const char* kOp = "nonfinite_";
constexpr int kThreads = 256;
constexpr int kBatch = 4;  // packs that a thread loads before it uses the first

// x - x is 0 where x is finite, else NaN.
template <class T>
__device__ bool is_nonfinite(T x) {
  const auto wide = widened<Accumulator<T, T>>(x);
  return wide - wide != 0;
}

template <int N, class T>
__device__ bool any_in_packs(const T* x, int64_t packs) {
  bool found = false;
  for (int64_t first = threadIdx.x; first < packs; first += kBatch * kThreads) {
    WordsOf<T, N> words[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * kThreads < packs) words[k] = load_words<N>(x + (first + k * kThreads) * N);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * kThreads >= packs) continue;
      const Pack<T, N> pack = unpack<T, N>(words[k]);
#pragma unroll
      for (int i = 0; i < N; ++i) found |= is_nonfinite(pack.at[i]);
    }
  }
  return found;
}

template <class T>
__device__ bool any_in_row(const Row& row) {
  constexpr int N = 16 / sizeof(T);
  static_assert(2 * N <= kThreads, "a thread takes one element of head or tail");
  const T* const x = global_pointer(reinterpret_cast<const T*>(row.src));
  const int64_t to_alignment = elements_to_alignment<N>(x);
  const int64_t head = to_alignment < row.count ? to_alignment : row.count;
  const int64_t packs = (row.count - head) / N;
  const int64_t edge = threadIdx.x < head ? threadIdx.x : threadIdx.x + packs * N;
  const bool found = edge < row.count && is_nonfinite(x[edge]);
  return any_in_packs<N>(x + head, packs) || found;
}

// The row, where its elements have `dtype` or one that follows it.
template <int dtype>
__device__ bool look_from(const Row& row) {
  if constexpr (dtype < kDtypes) {
    using T = typename TypeOf<static_cast<Dtype>(dtype)>::type;
    if (row.code == kAverage + (kDtypes + 1) * dtype) return any_in_row<T>(row);
    return look_from<dtype + 1>(row);
  }
  return false;
}

__global__ void __launch_bounds__(kThreads) nonfinite_kernel(Table table, float* found) {
  if (look_from<0>(table.row(blockIdx.x))) *found = 1.0f;
}

}  // namespace

void nonfinite_cuda(const Nonfinite& args) {
  const DeviceGuard guard(args.device, kOp);
  const Table table = device_table(*args.plan, args.device, args.stream).table;
  if (table.n_rows == 0) return;
  launch(kOp, nonfinite_kernel, {table.n_rows, kThreads, 0, args.stream}, table, args.found);
}

}  // namespace mtk
