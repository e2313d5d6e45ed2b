// logit_mse on CUDA. Gradients need no sums: one pass reads the logits and writes both, and keeps nothing.
#include "logit_mse.h"

#include "consistency.cuh"

namespace mtk {
namespace {

// A thread's sums over its part of a row, and the gradients.
template <class Acc>
struct Distance {
  Acc scale;  // of the student's gradient; 0: no gradient, whatever the logits hold
  double squares = 0, live[2] = {0, 0};  // classes that are not -inf

  __device__ static Acc between(const Class<Acc, 2>& c) {
    return c.logit[0] == c.logit[1] ? Acc(0) : c.logit[0] - c.logit[1];
  }
  __device__ void see(const Class<Acc, 2>& c) {
    const Acc d = between(c);
    squares += static_cast<double>(d * d);
#pragma unroll
    for (int s = 0; s < 2; ++s) live[s] += c.logit[s] != minus_infinity<Acc>();
  }
  template <int side>
  __device__ Acc of(const Class<Acc, 2>& c) const {
    return scale == 0 ? Acc(0) : (side == 0 ? scale : -scale) * between(c);
  }
};

template <class F>
__global__ void __launch_bounds__(kMaxThreads, F::kBlocksPerSm)
    logit_mse_kernel(const Consistency args, const Logits<typename F::Acc, 2> logits, const Sharing sharing,
                     const int cluster) {
  using Acc = typename F::Acc;
  using Threads = Group<kGroupHeader<3>>;
  Threads group(sharing.group, cluster);
  const RowsOfBlock rows(sharing, cluster);
  const double classes = static_cast<double>(args.classes);
  Totals<Acc> totals;
  for (int64_t first = rows.first; first < args.rows; first += rows.step) {
    const int64_t row = first + rows.within;  // past the end for some: an empty part
    RowPart<F, 2, Threads, false, true> part(logits, group, row);
    const double weight = row_weight<F>(args, row);
    Distance<Acc> distance{static_cast<Acc>(2 * weight * sharing.scale / classes)};
    part.write(distance);
    double sums[3] = {distance.squares, distance.live[0], distance.live[1]};
    group.sum(sums);
    const bool masked = sums[1] == 0 || sums[2] == 0;
    if (masked) {  // -inf throughout: known now, and rare enough to write twice
      Distance<Acc> none{0};
      part.write(none);
    }
    if (group.rank == 0 && row < args.rows)
      totals.add(args, row, masked || weight == 0 ? 0.0 : weight * sums[0] / classes);
  }
  totals.finish(args, sharing);
}

template <class F>
void launch_logit_mse(const Consistency& args, const char* op) {
  const auto logits = logits_of<typename F::Acc>(args);
  LaunchShape shape{0, 0, 0, args.stream};
  const SharingChoice<F, 2, kGroupHeader<3>> choice(logits, device_limits(args.device, op), args.device, op);
  Sharing sharing = choice.streamed(logit_mse_kernel<F>, shape);
  sharing.scale = args.row_scale();
  if (args.reduction != Reduction::none)
    sharing.scratch = scratch_of(args.device, args.stream, shape.blocks, op);
  launch(op, logit_mse_kernel<F>, shape, args, logits, sharing, shape.cluster);
}

}  // namespace

void logit_mse_cuda(const Consistency& args) {
  constexpr const char* kOp = "logit_mse";
  const DeviceGuard guard(args.device, kOp);
  if (is_empty(args, kOp)) return;
  if (args.doubles()) return launch_logit_mse<Format<double, 0, 1, true>>(args, kOp);
  const auto logits = logits_of<float>(args);
  const bool many = args.classes > kFewClasses,
             halves = size_of(args.student.dtype) == 2 && size_of(args.teacher.dtype) == 2;
  if (many && halves && in_phase(logits, 8)) return launch_logit_mse<Format<float, 2, 8, true>>(args, kOp);
  if (many && in_phase(logits, 4)) return launch_logit_mse<Format<float, 0, 4, true>>(args, kOp);
  return launch_logit_mse<Format<float, 0, 1, true>>(args, kOp);
}

}  // namespace mtk
