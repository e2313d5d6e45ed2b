// The CUDA side of consistency.h: one launch gives loss and gradient. A group of threads shares a row: one
// thread (rows that lie side by side, as in NCHW), some lanes of a warp, or a block.
#pragma once
#include <algorithm>

#include "consistency_row.cuh"

namespace mtk {

// How a launch shares its rows among threads.
struct Sharing {
  int group;     // threads of a row, a power of two; above a warp, all threads of the block
  bool cached;   // exponentials, in shared memory
  bool one_dim;  // rows are one dim, whose offsets need no division
  double scale;  // Consistency::row_scale()
  Scratch scratch;
};

// Loss<Acc> says what is added up over a row, and what loss and gradient follow.
template <template <class> class Loss, class F, bool kCached>
__global__ void __launch_bounds__(kMaxThreads, F::kBlocksPerSm)
    consistency_kernel(const Consistency args, const Sharing sharing) {
  using Acc = typename F::Acc;
  Group<Acc> group(sharing.group);
  const int64_t rows_per_block = static_cast<int>(blockDim.x) / group.size;
  double total = 0;
  for (int64_t first = blockIdx.x * rows_per_block; first < args.rows; first += gridDim.x * rows_per_block) {
    const int64_t row =
        first + static_cast<int>(threadIdx.x) / group.size;  // past the end for some: an empty part
    RowPart<F, kCached> part(args, sharing.one_dim, group, row);
    Loss<Acc> loss(part.template sums<Loss<Acc>::kCross>(group), args.classes, sharing.scale);
    if constexpr (Loss<Acc>::kSecondPass) {
      Acc terms[2] = {0, 0};
      part.for_each([&](Acc ea, Acc eb) { loss.add(ea, eb, terms); });
      group.sum(terms);
      loss.finish(terms);
    }
    if (args.dstudent.data) part.write([&](Acc ea, Acc eb) { return loss.gradient(ea, eb); });
    if (group.rank != 0 || row >= args.rows) continue;
    if (args.reduction == Reduction::none) {
      static_cast<Acc*>(args.loss)[row] = loss.value();
    } else {
      total += static_cast<double>(loss.value());
    }
  }
  if (args.reduction == Reduction::none) return;
  total = block_sum(total);
  if (threadIdx.x == 0) sharing.scratch.partials[blockIdx.x] = total;
  if (!is_last_block(sharing.scratch.ticket)) return;
  total = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    total += __ldcg(&sharing.scratch.partials[block]);  // from L2: another multiprocessor wrote it
  }
  total = block_sum(total);
  if (threadIdx.x != 0) return;
  *static_cast<Acc*>(args.loss) = static_cast<Acc>(total * sharing.scale);
  *sharing.scratch.ticket = 0;
}

// ---- host

constexpr int64_t kFewClasses =
    32;  // one thread may hold them; in packs, head and tail would be most of the row

inline int64_t power_of_two_from(int64_t x) {
  int64_t power = 1;
  while (power < x) power *= 2;
  return power;
}

// Whether packs of n classes start at the same classes in every operand, in every row.
inline bool in_phase(const Consistency& args, int64_t n) {
  const auto phase = [n](const Operand& operand) {
    const uint64_t elements =
        reinterpret_cast<uint64_t>(operand.data) / static_cast<uint64_t>(size_of(operand.dtype));
    return static_cast<int64_t>(elements) % n;
  };
  for (const Operand* operand : {&args.student, &args.teacher, &args.dstudent}) {
    if (!operand->data) continue;
    if (operand->class_stride != 1 || phase(*operand) != phase(args.student)) return false;
    for (int dim = 0; dim < kMaxRowDims; ++dim) {
      if (args.row_sizes[dim] > 1 && (operand->row_strides[dim] - args.student.row_strides[dim]) % n != 0)
        return false;
    }
  }
  return true;
}

// How many threads share a row, and whether their exponentials are cached.
template <class F>
Sharing choose_sharing(const Consistency& args, const DeviceLimits& limits, LaunchShape& shape) {
  constexpr int64_t kItems = 4;           // packs of a thread, where there are rows enough to fill the device
  constexpr int64_t kFull = 1024;         // threads that fill a multiprocessor
  constexpr int64_t kSmall = 128;         // threads of a block of several rows
  constexpr int64_t kBeside = 64 * 1024;  // bytes of a cache that leaves room for other blocks
  const int64_t packs = ceil_div(args.classes, F::N);
  const bool strided = args.student.class_stride != 1 || args.teacher.class_stride != 1;
  const bool thread_per_row = F::N == 1 && ((strided && args.rows >= limits.sms * kWarp) ||
                                            (args.classes <= kFewClasses && args.rows >= limits.sms * kFull));
  int64_t group = 1;
  if (!thread_per_row) {
    const int64_t most = std::min<int64_t>(power_of_two_from(packs), kMaxThreads);
    group = std::min(power_of_two_from(ceil_div(packs, kItems)), most);
    while (group < most && group * args.rows < limits.sms * kFull) group *= 2;
    group = std::max<int64_t>(group, 2 * F::N);  // room for the edge: 2 (N - 1) classes
  }
  const auto threads = [&] { return group <= kWarp ? kSmall : group; };
  const int64_t item = 2 * F::N * static_cast<int64_t>(sizeof(typename F::Acc));  // bytes
  const int64_t shared = kSharedHeader + ceil_div(packs, group) * item * threads();
  const int64_t most =
      thread_per_row ? std::min<int64_t>(kBeside, limits.shared_per_block) : limits.shared_per_block;
  const bool cached = shared <= most;
  if (!cached && !thread_per_row) group = kMaxThreads;
  shape.threads = static_cast<int>(threads());
  shape.shared = cached ? shared : kSharedHeader;
  const int64_t by_shared = limits.shared_per_sm / (shape.shared + 1024);  // the system takes 1 kB of a block
  const int64_t resident = std::max<int64_t>(1, std::min<int64_t>(2048 / shape.threads, by_shared));
  shape.blocks =
      std::min({ceil_div(args.rows, threads() / group), limits.sms * resident, int64_t{kMaxPartials}});
  const bool one_dim = args.row_sizes[0] == 1 && args.row_sizes[1] == 1 && args.row_sizes[2] == 1;
  return {static_cast<int>(group), cached, one_dim, args.row_scale(), {nullptr, nullptr}};
}

template <template <class> class Loss, class F>
void launch_consistency(const Consistency& args, const char* op) {
  LaunchShape shape{0, 0, 0, args.stream};
  Sharing sharing = choose_sharing<F>(args, device_limits(args.device, op), shape);
  if (args.reduction != Reduction::none) sharing.scratch = scratch_of(args.device, args.stream, op);
  launch(op, sharing.cached ? consistency_kernel<Loss, F, true> : consistency_kernel<Loss, F, false>, shape,
         args, sharing);
}

template <template <class> class Loss>
void consistency_cuda(const Consistency& args, const char* op) {
  constexpr int kF32 = static_cast<int>(Dtype::f32), kF16 = static_cast<int>(Dtype::f16);
  constexpr int kBf16 = static_cast<int>(Dtype::bf16);
  if (args.classes > kMaxClasses) {
    throw std::runtime_error(std::string(op) + ": student must have at most 2^30 classes on CUDA, got more");
  }
  const DeviceGuard guard(args.device, op);
  if (args.rows == 0) {
    const size_t bytes = args.reduction == Reduction::none ? 0
                         : args.doubles()                  ? sizeof(double)
                                                           : sizeof(float);
    if (bytes) check(cudaMemsetAsync(args.loss, 0, bytes, static_cast<cudaStream_t>(args.stream)), op);
    return;
  }
  const bool many = args.classes > kFewClasses, same = args.student.dtype == args.teacher.dtype;
  if (args.doubles()) {
    if (many && in_phase(args, 2)) return launch_consistency<Loss, Format<double, kAnyDtype, 2>>(args, op);
    return launch_consistency<Loss, Format<double, kAnyDtype, 1>>(args, op);
  }
  if (many && same && args.student.dtype == Dtype::f32 && in_phase(args, 4)) {
    return launch_consistency<Loss, Format<float, kF32, 4>>(args, op);
  }
  if (many && same && args.student.dtype == Dtype::f16 && in_phase(args, 8)) {
    return launch_consistency<Loss, Format<float, kF16, 8>>(args, op);
  }
  if (many && same && args.student.dtype == Dtype::bf16 && in_phase(args, 8)) {
    return launch_consistency<Loss, Format<float, kBf16, 8>>(args, op);
  }
  if (many && in_phase(args, 4)) return launch_consistency<Loss, Format<float, kAnyDtype, 4>>(args, op);
  return launch_consistency<Loss, Format<float, kAnyDtype, 1>>(args, op);
}

}  // namespace mtk
