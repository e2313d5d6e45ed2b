// The threads that share a row: some lanes of a warp, a block, or a cluster of blocks that reach each other's
// shared memory (sm_90 and newer).
#pragma once
#include "reduce.cuh"

namespace mtk {

constexpr int kMaxThreads = 256;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kMaxCluster = 16;  // blocks; more than 8 are not portable, and have to be allowed

// Bytes at the start of shared memory for reductions of up to K numbers: two sets of slots, for the warps of
// a block and the blocks of a cluster.
template <int K>
constexpr int kGroupHeader =
    2 * (kMaxWarps + kMaxCluster) * K * 8 > kSharedHeader ? 2 * (kMaxWarps + kMaxCluster) * K * 8
                                                          : kSharedHeader;

// Host code never launches a cluster of a kernel that was compiled for an architecture without: launch.cuh.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ inline int cluster_rank() { return static_cast<int>(__clusterRelativeBlockRank()); }
__device__ inline void cluster_sync() {
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}
template <class T>
__device__ inline T* shared_of(T* mine, int rank) {
  return static_cast<T*>(__cluster_map_shared_rank(mine, static_cast<unsigned>(rank)));
}
#else
__device__ inline int cluster_rank() { return 0; }
__device__ inline void cluster_sync() {}
template <class T>
__device__ inline T* shared_of(T* mine, int) {
  return mine;
}
#endif

// All threads of a group, and all groups of a block, take part in every reduction; all get the same bits.
// kHeader: of kGroupHeader.
template <int kHeader>
class Group {
 public:
  static constexpr int kHeaderBytes = kHeader;
  const int size, cluster, rank;  // threads; blocks; of the thread

  __device__ Group(int size, int cluster)
      : size(size),
        cluster(cluster),
        rank(cluster > 1 ? cluster_rank() * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)
                         : static_cast<int>(threadIdx.x) & (size - 1)) {
    if (cluster > 1) cluster_sync();  // before the first write to another block: it has to be running
  }

  template <class T, int K>
  __device__ void sum(T (&x)[K]) {
    reduce(x, [](T(&x)[K], const T(&y)[K]) {
#pragma unroll
      for (int k = 0; k < K; ++k) x[k] += y[k];
    });
  }

  // combine(x, y): x becomes what both give, whichever comes first
  template <class T, int K, class Combine>
  __device__ void reduce(T (&x)[K], Combine combine) {
    static_assert(2 * (kMaxWarps + kMaxCluster) * K * sizeof(T) <= kHeader, "slots fit before the cache");
    for (int lanes = (size < kWarp ? size : kWarp) / 2; lanes > 0; lanes /= 2) {
      T other[K];
#pragma unroll
      for (int k = 0; k < K; ++k) other[k] = __shfl_xor_sync(kAllLanes, x[k], lanes);
      combine(x, other);
    }
    if (size <= kWarp) return;
    // Successive reductions alternate between two sets of slots: who writes a set has passed the barrier that
    // follows the reads of its last use.
    T* const slots = reinterpret_cast<T*>(shared_bytes() + parity_ * (kHeader / 2));
    parity_ ^= 1;
    const int thread = static_cast<int>(threadIdx.x);
    if (thread % kWarp == 0) put(slots, thread / kWarp, x);
    __syncthreads();
    fold(slots, static_cast<int>(blockDim.x) / kWarp, x, combine);
    if (cluster == 1) return;
    T* const of_blocks = slots + kMaxWarps * K;
    if (thread < cluster) put(shared_of(of_blocks, thread), cluster_rank(), x);
    cluster_sync();
    fold(of_blocks, cluster, x, combine);
  }

 private:
  int parity_ = 0;

  template <class T, int K>
  __device__ static void put(T* slots, int at, const T (&x)[K]) {
#pragma unroll
    for (int k = 0; k < K; ++k) slots[at * K + k] = x[k];
  }

  template <class T, int K, class Combine>
  __device__ static void fold(const T* slots, int count, T (&x)[K], Combine combine) {
#pragma unroll
    for (int k = 0; k < K; ++k) x[k] = slots[k];
#pragma unroll 1
    for (int at = 1; at < count; ++at) {
      T other[K];
#pragma unroll
      for (int k = 0; k < K; ++k) other[k] = slots[at * K + k];
      combine(x, other);
    }
  }
};

}  // namespace mtk
