// The CUDA side of consistency.h: one launch gives loss, gradients and utilization.
//
// A loss is a struct Loss<Acc, kOptions>, made for each row:
//   kSums      what is added up beside exponentials: add(class, sums), and recenter() when a maximum moves
//   kTerms     what a second pass adds up: add_terms(class, terms), finish_terms(terms)
//   kLooks     whether it has to see the logits before anything is known: look(index, logits)
//   kLogits    whether gradients or terms need logits, not exponentials alone
//   finish()   takes the row's sums; value(); of<side>(class): the gradients
#pragma once
#include "row_sharing.cuh"

namespace mtk {

// A quotient that is a constant of a row, in two parts: its rounding would be the same for every class and
// not average out.
template <class Acc>
struct Quotient {
  Acc high = 0, low = 0;

  __device__ void set(double over, double under) {
    const double exact = over / under;
    high = static_cast<Acc>(exact);
    const double rest =
        sizeof(Acc) == 8 ? fma(-exact, under, over) / under : exact - static_cast<double>(high);
    low = rest - rest == 0 ? static_cast<Acc>(rest) : Acc(0);
  }
  // x - quotient - y
  __device__ Acc subtracted(Acc x, Acc y) const { return ((x - high) - y) - low; }
};

// What a row is worked out from, once its sums are known. z1 (p - q) = e0 * ratio - e1: exactly 0 for equal
// sides.
template <class Acc>
struct Sides {
  Quotient<Acc> ratio;
  Acc inverse[2] = {0, 0};

  __device__ void set(double z0, double z1) {
    ratio.set(z1, z0);
    inverse[0] = static_cast<Acc>(1 / z0), inverse[1] = static_cast<Acc>(1 / z1);
  }
  __device__ Acc difference(Acc e0, Acc e1) const { return (e0 * ratio.high - e1) + e0 * ratio.low; }
  __device__ Acc difference(const Class<Acc, 2>& c) const { return difference(c.e[0], c.e[1]); }
};

// The sum of e[kOf] (x[kPlus] - x[kMinus]), without the second where kMinus is negative. A class that is
// masked at the side that weighs it adds nothing.
template <int kOf, int kPlus, int kMinus>
struct Cross {
  template <class T>
  __device__ static T of(const T* x) {
    return kMinus < 0 ? x[kPlus] : x[kPlus] - x[kMinus < 0 ? 0 : kMinus];
  }
  template <class Acc>
  __device__ static void add(const Class<Acc, 2>& c, Acc& sum) {
    sum += c.e[kOf] != 0 ? c.e[kOf] * of(c.x) : Acc(0);
  }
  __device__ static void recenter(const double* z, const double* down, const double* factor, double& sum) {
    sum = factor[kOf] != 0 ? factor[kOf] * (z[kOf] != 0 ? sum - z[kOf] * of(down) : sum) : 0.0;
  }
};

// What a row's gradients are multiplied by; with 0 they are 0, whatever the loss gives.
template <class Loss, class Acc>
struct ScaledGradient {
  const Loss& loss;
  Acc scales[2];

  __device__ static void see(const Class<Acc, 2>&) {}
  template <int side>
  __device__ Acc of(const Class<Acc, 2>& c) const {
    return scales[side] == 0 ? Acc(0) : scales[side] * loss.template of<side>(c);
  }
};

// A thread's share of the results.
template <class Acc>
struct Totals {
  double sums[2] = {0, 0};  // of losses, of rows at the threshold or above

  __device__ void add(const Consistency& args, int64_t row, double value) {
    if (args.reduction == Reduction::none) {
      static_cast<Acc*>(args.loss)[row] = static_cast<Acc>(value);
    } else {
      sums[0] += value;
    }
  }
  __device__ void finish(const Consistency& args, const Sharing& sharing) {
    if (args.reduction == Reduction::none && !args.utilization) return;
    double all[2] = {sums[0], sums[1]};  // indexed at run time: in local memory, which the sums are not
    if (!grid_sum(all, sharing.scratch) || threadIdx.x != 0) return;
    if (args.reduction != Reduction::none)
      *static_cast<Acc*>(args.loss) = static_cast<Acc>(all[0] * sharing.scale);
    if (args.utilization)
      *static_cast<Acc*>(args.utilization) = static_cast<Acc>(all[1] / static_cast<double>(args.rows));
  }
};

template <class F>
__device__ inline double row_weight(const Consistency& args, int64_t row) {
  if (!F::kOptions || !args.weight.data || row >= args.rows) return 1;
  return static_cast<double>(
      element<typename F::Acc>(args.weight, row_offset(args.weight, args.row_sizes, row)));
}

template <class F, class Loss>
constexpr int kHeaderOf = kGroupHeader<(2 + Loss::kSums > Loss::kTerms ? 2 + Loss::kSums : Loss::kTerms)>;

// One row, by its group; the same value on each of its threads.
template <class Loss, class F, bool kCached, class Group>
__device__ double run_row(const Consistency& args, const Logits<typename F::Acc, 2>& logits, Group& group,
                          int64_t row, double row_scale, bool& kept) {
  using Acc = typename F::Acc;
  RowPart<F, 2, Group, kCached, Loss::kLogits> part(logits, group, row);
  Loss loss(args);
  double sums[2 + Loss::kSums];
  part.sums(group, loss, sums);
  if constexpr (Loss::kLooks) loss.finish_look(group, args, logits, row);
  kept = sums[0] != 0 && sums[1] != 0;    // not -inf throughout; NaN is kept
  if (F::kOptions && args.has_threshold)  // max q = 1 / z1
    kept &= !(static_cast<Acc>(1 / sums[1]) < static_cast<Acc>(args.threshold.get()));
  const double factor = kept ? row_weight<F>(args, row) : 0;  // whatever the weight is
  loss.finish(sums, part, static_cast<double>(args.classes));
  if constexpr (Loss::kTerms > 0) {
    double terms[Loss::kTerms];
    part.terms(group, [&](const Class<Acc, 2>& c, Acc* sums) { loss.add_terms(c, sums); }, terms);
    loss.finish_terms(terms);
  }
  const double scale = factor * row_scale;
  ScaledGradient<Loss, Acc> gradient{
      loss, {static_cast<Acc>(scale * args.student_scale), static_cast<Acc>(scale * args.teacher_scale)}};
  if (args.dstudent.data || args.dteacher.data) part.write(gradient);
  return factor == 0 ? 0.0 : factor * loss.value();
}

// The rows of a block, or of its cluster: first, first + step, ..., and as many beside each as it has groups.
struct RowsOfBlock {
  int64_t first, step, within;

  __device__ RowsOfBlock(const Sharing& sharing, int cluster) {
    const int threads = static_cast<int>(blockDim.x);
    const int64_t beside = cluster > 1 ? 1 : threads / sharing.group;
    within = cluster > 1 ? 0 : static_cast<int>(threadIdx.x) / sharing.group;
    first = blockIdx.x / static_cast<unsigned>(cluster) * beside;
    step = gridDim.x / static_cast<unsigned>(cluster) * beside;
  }
};

template <class Loss, class F, bool kCached>
__global__ void __launch_bounds__(kMaxThreads, F::kBlocksPerSm)
    consistency_kernel(const Consistency args, const Logits<typename F::Acc, 2> logits, const Sharing sharing,
                       const int cluster) {
  Group<kHeaderOf<F, Loss>> group(sharing.group, cluster);
  const RowsOfBlock rows(sharing, cluster);
  Totals<typename F::Acc> totals;
  for (int64_t first = rows.first; first < args.rows; first += rows.step) {
    const int64_t row = first + rows.within;  // past the end for some: an empty part
    bool kept;
    const double value = run_row<Loss, F, kCached>(args, logits, group, row, sharing.scale, kept);
    if (group.rank != 0 || row >= args.rows) continue;
    totals.add(args, row, value);
    totals.sums[1] += kept;
  }
  totals.finish(args, sharing);
}

// ---- host

template <class Acc>
Logits<Acc, 2> logits_of(const Consistency& args) {
  Logits<Acc, 2> logits{{args.student, args.teacher},
                        {args.dstudent, args.dteacher},
                        args.center,
                        {multiplier_of<Acc>(args.student_scale), multiplier_of<Acc>(args.teacher_scale)},
                        {static_cast<Acc>(args.student_scale), static_cast<Acc>(args.teacher_scale)},
                        args.rows,
                        args.classes,
                        {},
                        args.row_sizes[0] == 1 && args.row_sizes[1] == 1 && args.row_sizes[2] == 1};
  std::copy_n(args.row_sizes, kMaxRowDims, logits.row_sizes);
  return logits;
}

template <class Loss, class F>
void launch_consistency(const Consistency& args, const Logits<typename F::Acc, 2>& logits, const char* op) {
  LaunchShape shape{0, 0, 0, args.stream};
  const auto cached = consistency_kernel<Loss, F, true>, streaming = consistency_kernel<Loss, F, false>;
  const SharingChoice<F, 2, kHeaderOf<F, Loss>> choice(logits, device_limits(args.device, op), args.device,
                                                       op);
  Sharing sharing = choice.choose(cached, streaming, shape);
  sharing.scale = args.row_scale();
  if (args.reduction != Reduction::none || args.utilization)
    sharing.scratch = scratch_of(args.device, args.stream, shape.blocks, op);
  launch(op, sharing.cached ? cached : streaming, shape, args, logits, sharing, shape.cluster);
}

inline void clear(void* to, int64_t bytes, void* stream, const char* op) {
  if (to) check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)), op);
}

inline void check_classes(int64_t classes, const char* op) {
  if (classes > kMaxClasses)
    throw std::runtime_error(std::string(op) + ": student must have at most 2^30 classes on CUDA, got " +
                             std::to_string(classes));
}

// Whether there is nothing to launch; what is then 0 is set to 0.
inline bool is_empty(const Consistency& args, const char* op) {
  check_classes(args.classes, op);
  if (args.rows > 0) return false;
  const int64_t bytes = args.doubles() ? sizeof(double) : sizeof(float);
  if (args.reduction != Reduction::none) clear(args.loss, bytes, args.stream, op);
  clear(args.utilization, bytes, args.stream, op);
  return true;
}

// Half precision shares one kernel, whose conversions are looked up; so do mixed dtypes, and all of the
// options. fp64 goes class by class: its arithmetic, not its accesses, takes the time, and the compiler's.
template <template <class, bool> class Loss>
void consistency_cuda(const Consistency& args, const char* op) {
  const DeviceGuard guard(args.device, op);
  if (is_empty(args, op)) return;
  const bool many = args.classes > kFewClasses;
  if (args.doubles())
    return launch_consistency<Loss<double, true>, Format<double, 0, 1, true>>(args, logits_of<double>(args),
                                                                              op);
  const auto logits = logits_of<float>(args);
  const int64_t width = size_of(args.student.dtype);
  const bool one_width = many && args.plain() && width == size_of(args.teacher.dtype);
  if (one_width && width == 4 && in_phase(logits, 4))
    return launch_consistency<Loss<float, false>, Format<float, 4, 4, false>>(args, logits, op);
  if (one_width && width == 2 && in_phase(logits, 8))
    return launch_consistency<Loss<float, false>, Format<float, 2, 8, false>>(args, logits, op);
  if (many && in_phase(logits, 4))
    return launch_consistency<Loss<float, true>, Format<float, 0, 4, true>>(args, logits, op);
  return launch_consistency<Loss<float, true>, Format<float, 0, 1, true>>(args, logits, op);
}

}  // namespace mtk
