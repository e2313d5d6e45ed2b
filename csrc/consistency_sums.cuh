// What is known of a row of logits of two or three sides: operands, a class, sums as they grow.
#pragma once
#include "consistency_device.cuh"

namespace mtk {

constexpr int kNoClass = 0x7fffffff;

// A kernel's operands. Side 0 is a student, side 1 the teacher, side 2 a student's second head.
template <class Acc, int kSides>
struct Logits {
  Operand sides[kSides];
  Operand gradients[kSides];  // null data where nobody needs them
  Operand center;             // of side 1; null data without one
  Multiplier<Acc> multipliers[kSides];
  Acc scales[kSides];  // 1 / temperature
  int64_t rows, classes;
  int64_t row_sizes[kMaxRowDims];
  bool one_dim;  // rows are one dim, whose offsets need no division

  __device__ int64_t offset(const Operand& operand, int64_t row) const {
    return one_dim ? row * operand.row_strides[kMaxRowDims - 1] : row_offset(operand, row_sizes, row);
  }
};

// One class of a row: logits; logits less their maxima, times the scale; exponentials.
template <class Acc, int kSides>
struct Class {
  int index;
  Acc logit[kSides], x[kSides], e[kSides];
};

// Sums that a thread adds to class by class: after kFold of them, fp64 takes over what there is. Of fp32
// those are few: where one class outweighs the rest, each further addition rounds off at its size (after 32 a
// row's loss was off by 2.5 times as much as after 4).
template <class Acc, int K>
struct LongSums {
  static constexpr int kFold = sizeof(Acc) == 8 ? 32 : 4;
  Acc recent[K > 0 ? K : 1] = {};
  double all[K > 0 ? K : 1] = {};
  int since = 0;

  __device__ void fold() {
#pragma unroll
    for (int k = 0; k < K; ++k) all[k] += static_cast<double>(recent[k]), recent[k] = 0;
    since = 0;
  }
  // After so many classes.
  __device__ void step(int classes) {
    since += classes;
    if (since >= kFold) fold();
  }
};

// Maxima and sums over a thread's part, relative to the maxima seen so far: z of each side, then Loss::kSums
// of the loss's own.
template <class Acc, int kSides, class Loss>
struct Running {
  static constexpr int kSums = Loss::kSums;
  Acc max[kSides];
  LongSums<Acc, kSides + kSums> sums;

  __device__ Running() {
#pragma unroll
    for (int s = 0; s < kSides; ++s) max[s] = minus_infinity<Acc>();
  }
  __device__ void add(const Loss& loss, const Class<Acc, kSides>& c) {
#pragma unroll
    for (int s = 0; s < kSides; ++s) sums.recent[s] += c.e[s];
    if constexpr (kSums > 0) loss.add(c, sums.recent + kSides);
  }
  __device__ void recenter(const Loss& loss, const Logits<Acc, kSides>& logits, const Acc (&next)[kSides]) {
    bool moves = false;
#pragma unroll
    for (int s = 0; s < kSides; ++s) moves |= next[s] != max[s];
    if (!moves) return;
    sums.fold();
    double down[kSides], factor[kSides];  // what x loses, what exponentials are multiplied by
#pragma unroll
    for (int s = 0; s < kSides; ++s) {
      const Acc to = finite_max(next[s]);
      down[s] = static_cast<double>((to - finite_max(max[s])) * logits.scales[s]);
      factor[s] = static_cast<double>(exponential(max[s] - to, logits.multipliers[s]));
    }
    if constexpr (kSums > 0) loss.recenter(sums.all, down, factor, sums.all + kSides);
#pragma unroll
    for (int s = 0; s < kSides; ++s) sums.all[s] *= factor[s], max[s] = next[s];
  }
};

}  // namespace mtk
