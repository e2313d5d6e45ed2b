// The contract of the losses between a student's and a teacher's logits: loss and gradient from one launch.
//   p = softmax(student row), q = softmax(teacher row); the gradient goes to the student alone.
// A row is the vector along `dim`. A row that is -inf throughout on either side has loss 0 and gradient 0; a
// class that is -inf at the teacher has q = 0 and q log q = 0. Accumulators are fp32, or fp64 where either
// side is fp64; the loss has the accumulator's dtype.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "kernel.h"

namespace mtk {

enum class Reduction : int32_t { none = 0, sum = 1, mean = 2 };  // over rows

constexpr int kMaxRowDims = 4;  // after dims that lie together in every operand are merged

// One operand of shape [row dims..., classes]; strides in elements.
struct Operand {
  void* data;  // null for a gradient that nobody needs
  Dtype dtype;
  int64_t class_stride;
  int64_t row_strides[kMaxRowDims];
};

struct Consistency {
  Operand student, teacher, dstudent;  // dstudent: dtype of the student, fp32 where that is fp16
  void* loss;                          // [rows] for none, else one element
  int64_t rows, classes;
  int64_t row_sizes[kMaxRowDims];  // the last varies fastest; unused dims have size 1
  Reduction reduction;
  int device;
  void* stream;  // cudaStream_t

  bool doubles() const { return student.dtype == Dtype::f64 || teacher.dtype == Dtype::f64; }
  // What a row's loss and gradient are multiplied by; a mean over no rows is 0.
  double row_scale() const {
    return reduction == Reduction::mean && rows > 0 ? 1.0 / static_cast<double>(rows) : 1.0;
  }
};

struct RowOffsets {
  int64_t student, teacher, dstudent;
};

MTK_INLINE RowOffsets row_offsets(const Consistency& args, int64_t row) {
  RowOffsets offsets{0, 0, 0};
  for (int dim = kMaxRowDims - 1; dim >= 0 && row > 0; --dim) {
    const int64_t index = row % args.row_sizes[dim];
    row /= args.row_sizes[dim];
    offsets.student += index * args.student.row_strides[dim];
    offsets.teacher += index * args.teacher.row_strides[dim];
    offsets.dstudent += index * args.dstudent.row_strides[dim];
  }
  return offsets;
}

}  // namespace mtk
