// swap_ on CUDA: one launch, one block per row of the chunked table.
#include "swap.h"

#include "launch.cuh"

namespace mtk {
namespace {

constexpr const char* kOp = "swap_";
constexpr int kThreads = 256;
constexpr int kBatch = 2;  // packs of each side that a thread loads before it stores the first

template <class T>
__device__ void swap_elements(T* a, T* b, int64_t first, int64_t count) {
#pragma unroll 1
  for (int64_t i = first + threadIdx.x; i < count; i += kThreads) {
    T *const x = global_pointer(a + i), *const y = global_pointer(b + i);
    const T kept = *x;
    *x = *y;
    *y = kept;
  }
}

// Both aligned to 16 bytes.
template <int N, class T>
__device__ void swap_packs(T* a, T* b, int64_t packs) {
  for (int64_t first = threadIdx.x; first < packs; first += kBatch * kThreads) {
    WordsOf<T, N> from_a[kBatch], from_b[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * kThreads >= packs) continue;
      from_a[k] = load_words<N>(global_pointer(a + (first + k * kThreads) * N));
      from_b[k] = load_words<N>(global_pointer(b + (first + k * kThreads) * N));
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * kThreads >= packs) continue;
      store_pack(global_pointer(a + (first + k * kThreads) * N), unpack<T, N>(from_b[k]));
      store_pack(global_pointer(b + (first + k * kThreads) * N), unpack<T, N>(from_a[k]));
    }
  }
}

template <class T>
__device__ void swap_row(const Row& row, const Target& target) {
  constexpr int N = 16 / sizeof(T);
  T *const a = reinterpret_cast<T*>(target.dst), *const b = reinterpret_cast<T*>(row.src);
  const int64_t to_alignment = elements_to_alignment<N>(a);
  if (to_alignment != elements_to_alignment<N>(b)) return swap_elements(a, b, 0, row.count);
  const int64_t head = to_alignment < row.count ? to_alignment : row.count;
  const int64_t packs = (row.count - head) / N;
  swap_elements(a, b, 0, head);
  swap_packs<N>(a + head, b + head, packs);
  swap_elements(a, b, head + packs * N, row.count);
}

__global__ void __launch_bounds__(kThreads) swap_kernel(Table table) {
  const Row row = table.row(blockIdx.x);
  const Target target = table.targets(blockIdx.x)[0];
  row.code == kCopyWords ? swap_row<uint32_t>(row, target) : swap_row<uint8_t>(row, target);
}

}  // namespace

void swap_cuda(const Swap& args) {
  const DeviceGuard guard(args.device, kOp);
  const Table table = device_table(*args.plan, args.device, args.stream).table;
  if (table.n_rows == 0) return;
  launch(kOp, swap_kernel, {table.n_rows, kThreads, 0, args.stream}, table);
}

}  // namespace mtk
