// ema_update on CUDA: one launch, one block per row of the chunked table.
#include "ema_update.h"

#include <algorithm>

#include "ema_row.cuh"
#include "reduce.cuh"

namespace mtk {
namespace {

// Thread k reads what lies in memory for average k: schedules are long computations in fp64, of which some
// GPUs do few at a time.
__device__ void prepare(Shared& shared, const DeviceTable& table, const EmaUpdate& args, bool has_row) {
  const int k = static_cast<int>(threadIdx.x);
  if (k >= table.table.averages) return;
  const EmaStep step(args);
  const double decay = step.decay(args, k);
  Average& average = shared.averages[k];
  average.from_teacher = decay > 0.5;
  average.weight = decay > 0.5 ? 1.0 - decay : decay;
  average.weight32 = static_cast<float>(average.weight);
  if (has_row) average.target = table.table.targets(blockIdx.x)[k];
  if (k != 0) return;
  shared.random = step.random;
  shared.number = step.number;
  shared.count = table.table.averages;
  shared.skipped = step.skipped;
  shared.writes = step.writes;
  shared.stochastic = args.stochastic;
  shared.drifts = args.drift != nullptr;
}

// Each block leaves its sums of squares; the last one to come adds them up, block after block, and moves the
// step: all others have read it, because a block takes its ticket after that.
template <class V>
__device__ void finish(Shared& shared, const DeviceTable& table, const EmaUpdate& args) {
  const int averages = table.table.averages;
  const bool drifts = V::kExtras && shared.drifts && shared.writes;
  for (int k = 0; drifts && k < averages; ++k) {
    const double sum = block_sum(shared.square_sum(k));
    if (threadIdx.x == 0 && table.partials) table.partials[blockIdx.x * averages + k] = sum;
  }
  if (gridDim.x > 1 && !is_last_block(table.ticket)) return;
  for (int k = 0; drifts && k < averages; ++k) {
    double sum = 0;
    for (int64_t row = threadIdx.x; row < table.table.n_rows; row += kThreads) {
      sum += __ldcg(&table.partials[row * averages + k]);  // from L2: another multiprocessor wrote it
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) args.drift[k] = sqrt(sum);
  }
  if (threadIdx.x != 0) return;
  if (args.advance) *args.step = shared.number;
  if (gridDim.x > 1) *table.ticket = 0;
}

// No loop over rows: ptxas hoists every body's indices out of it, and spills.
template <class V>
__global__ void __launch_bounds__(kThreads, V::kBlocksPerSm)
    ema_update_kernel(const __grid_constant__ DeviceTable table, const __grid_constant__ EmaUpdate args) {
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes() + kSharedHeader);
  const bool has_row = blockIdx.x < table.table.n_rows;  // no rows: one block, which moves the step
  Row row{};
  if (has_row) row = table.table.row(blockIdx.x);
  prepare(shared, table, args, has_row);
  for (int k = 0; V::kExtras && args.drift && k < table.table.averages; ++k) shared.square_sum(k) = 0;
  __syncthreads();
  if (has_row && shared.writes) move_row<V>(row, shared);
  if (shared.skipped || !(args.advance || (V::kExtras && args.drift))) return;
  finish<V>(shared, table, args);
}

}  // namespace

void ema_update_cuda(const EmaUpdate& args) {
  constexpr const char* kOp = "ema_update";
  const DeviceGuard guard(args.device, kOp);
  const DeviceTable table = device_table(*args.plan, args.device, args.stream);
  const int64_t n_rows = table.table.n_rows;
  if (n_rows == 0 && !args.advance && !args.drift) return;
  const bool extras = args.stochastic || args.drift || table.has_low;
  const auto kernel = extras                     ? ema_update_kernel<Anything>
                      : args.plan->averages == 1 ? ema_update_kernel<Plain>
                                                 : ema_update_kernel<Several>;
  const int64_t sums = args.drift ? args.plan->averages * kThreads * static_cast<int64_t>(sizeof(double)) : 0;
  launch(kOp, kernel,
         {std::max<int64_t>(n_rows, 1), kThreads, kSharedHeader + static_cast<int64_t>(sizeof(Shared)) + sums,
          args.stream},
         table, args);
}

}  // namespace mtk
