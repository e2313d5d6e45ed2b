// temporal_ensemble_: loss, gradient and the update of the ensemble from one read of the logits and of its
// rows.
//   Z = ensemble, i = index[row], p = softmax(student row), t = Z[i] as it was, corrected, C classes
//   row loss = (1/C) sum_c (p_c - t_c)^2,   d/dstudent_c = (2/C) p_c ((p_c - t_c) - sum_k p_k (p_k - t_k))
//   Z[i] <- alpha * Z[i] + (1 - alpha) * p
// t = Z / (1 - alpha^updates) (bias), Z / sum_c Z (renormalize) or Z. Where updates is 0, or the sum, there
// is no target: loss 0 and gradient 0, Z moves. A row of logits that is -inf throughout has loss 0 and
// gradient 0, its Z stays. Accumulators are fp32, or fp64 where student or ensemble is; the loss has their
// dtype.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "kernel.h"

namespace mtk {

enum class Correction : int32_t { none = 0, bias = 1, renormalize = 2 };

// [rows, classes], strides in elements.
struct Matrix {
  void* data;  // null for a gradient that nobody needs
  Dtype dtype;
  int64_t row_stride, class_stride;
};

struct TemporalEnsemble {
  Matrix ensemble;           // [samples, classes]
  Matrix student, dstudent;  // dstudent: dtype of the student, fp32 where that is fp16
  const void* index;         // [rows] int64 or int32: rows of the ensemble, no two the same
  bool wide_index;
  int64_t index_stride;
  void* loss;  // [rows], or one where it is reduced
  int64_t rows, classes;
  double alpha;
  double divisor;  // what Z is divided by, unless it is renormalized
  bool renormalize;
  bool has_target;
  bool reduced;      // to a sum
  double row_scale;  // what a row's loss and gradient are multiplied by
  int device;
  void* stream;

  bool doubles() const { return student.dtype == Dtype::f64 || ensemble.dtype == Dtype::f64; }
  int64_t sample(int64_t row) const {
    return wide_index ? static_cast<const int64_t*>(index)[row * index_stride]
                      : static_cast<const int32_t*>(index)[row * index_stride];
  }
};

void temporal_ensemble_cpu(const TemporalEnsemble& args);
constexpr Kernel<TemporalEnsemble> temporal_ensemble_cuda = nullptr;  // on a GPU the kernel is Triton's

}  // namespace mtk
