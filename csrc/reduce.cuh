// Sums over a block and over a grid, in a fixed order, within one launch.
#pragma once
#include "launch.cuh"

namespace mtk {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSharedHeader = 1024;  // bytes before an op's own: the slots of reductions over a block

__device__ inline unsigned char* shared_bytes() {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return shared_memory;
}

// The sum of x over the block, on every thread, in a fixed order. Barriers before and after: the slots are
// shared.
__device__ inline double block_sum(double x) {
  double* slots = reinterpret_cast<double*>(shared_bytes());
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += slots[warp];
  __syncthreads();
  return sum;
}

// Whether this block is the last of the grid to come here. What thread 0 of every block wrote before is then
// visible to it, and what it read before has been read.
__device__ inline bool is_last_block(unsigned* ticket) {
  bool* last = reinterpret_cast<bool*>(shared_bytes());
  if (threadIdx.x == 0) {
    __threadfence();  // the partial sum before the ticket
    *last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __threadfence();  // the ticket before the other blocks' sums
  }
  __syncthreads();
  const bool result = *last;
  __syncthreads();
  return result;
}

// The sums of x over the grid, in a fixed order, on every thread of the block that comes last; false on the
// others. What was summed is read from L2: another multiprocessor wrote it.
template <int K>
__device__ inline bool grid_sum(double (&x)[K], const Scratch& scratch) {
#pragma unroll 1  // once a launch: small code
  for (int k = 0; k < K; ++k) {
    const double sum = block_sum(x[k]);
    if (threadIdx.x == 0) scratch.partials[blockIdx.x * K + k] = sum;
  }
  if (!is_last_block(scratch.ticket)) return false;
#pragma unroll 1
  for (int k = 0; k < K; ++k) {
    x[k] = 0;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x)
      x[k] += __ldcg(&scratch.partials[block * K + k]);
    x[k] = block_sum(x[k]);
  }
  if (threadIdx.x == 0) *scratch.ticket = 0;
  return true;
}

}  // namespace mtk
