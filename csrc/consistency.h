// The contract of the losses between a student's and a teacher's logits: loss and gradients from one launch.
//   x = (a - max a) / student_temperature          p = softmax(x): the student's probabilities
//   y = (b - c - max(b - c)) / teacher_temperature  q = softmax(y): the teacher's; c is the center
// A row is the vector along `dim`. Its factor is its weight, times 0 where max q is below the threshold; with
// the factor 0 its loss and gradients are 0, whatever it holds. So they are for a row that is -inf throughout
// on either side; a class that is -inf at one side has probability 0 there, and 0 log 0 = 0. Accumulators are
// fp32, or fp64 where either side is fp64; the losses have the accumulator's dtype.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "kernel.h"
#include "number.h"

namespace mtk {

enum class Reduction : int32_t { none = 0, sum = 1, mean = 2 };  // over rows

constexpr int kMaxRowDims = 4;  // after dims that lie together in every operand are merged

// One operand of shape [row dims..., classes]; strides in elements.
struct Operand {
  void* data;  // null for what nobody needs or gave
  Dtype dtype;
  int64_t class_stride;
  int64_t row_strides[kMaxRowDims];
};

struct Consistency {
  Operand student, teacher;
  Operand dstudent, dteacher;           // dtype of their logits, fp32 where that is fp16
  Operand weight;                       // of the rows: no classes
  Operand center;                       // [classes]: no rows
  double student_scale, teacher_scale;  // 1 / temperature
  bool has_threshold;
  Number threshold;        // for max q
  bool hard;               // softmax_cross_entropy: the target is the teacher's first largest class
  double label_smoothing;  // softmax_cross_entropy: target <- (1 - s) target + s / classes
  void* loss;              // [rows] for none, else one element
  void* utilization;       // one element: the share of rows at the threshold or above it; null without one
  int64_t rows, classes;
  int64_t row_sizes[kMaxRowDims];  // the last varies fastest; unused dims have size 1
  Reduction reduction;
  int device;
  void* stream;  // cudaStream_t

  bool doubles() const { return student.dtype == Dtype::f64 || teacher.dtype == Dtype::f64; }
  // What a row's loss and gradients are multiplied by, beside its factor; a mean over no rows is 0.
  double row_scale() const {
    return reduction == Reduction::mean && rows > 0 ? 1.0 / static_cast<double>(rows) : 1.0;
  }
  bool plain() const {
    return !dteacher.data && !weight.data && !center.data && !has_threshold && !hard && label_smoothing == 0;
  }
};

// Where a row begins in an operand, in elements.
MTK_INLINE int64_t row_offset(const Operand& operand, const int64_t (&row_sizes)[kMaxRowDims], int64_t row) {
  if (row < row_sizes[kMaxRowDims - 1]) return row * operand.row_strides[kMaxRowDims - 1];
  int64_t offset = 0;
  for (int dim = kMaxRowDims - 1; dim >= 0 && row > 0; --dim) {
    offset += row % row_sizes[dim] * operand.row_strides[dim];
    row /= row_sizes[dim];
  }
  return offset;
}

}  // namespace mtk
