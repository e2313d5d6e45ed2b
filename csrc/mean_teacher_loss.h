// mean_teacher_loss: the objective of a step, from one launch. Over B rows, with student logits a (the class
// head), d (the second head, for consistency; a where there is but one), teacher logits b (its class head),
// labels l:
//   class_loss       = sum over labeled rows of (log sum_c exp a_c - a_l) / B, or / the number of labeled
//   rows consistency_loss = consistency_weight * sum over rows of D(softmax d, softmax b) / B
//                      D = (1/C) sum_c (p - q)^2, or sum_c q (log q - log p)
//   logit_distance   = logit_distance_cost * sum over rows of (1/C) sum_c (a - d)^2 / B; 0 with one head
//   total            = their sum
// The teacher is a constant. A term of weight 0 is 0, whatever the logits hold. Masked classes and rows are
// as in consistency.h. A label's rank is the number of larger logits, and of equal ones before it; it is a
// NaN's when the label's logit is NaN: no top-k.
#pragma once
#include "consistency.h"

namespace mtk {

struct Labels {
  const void* data;
  bool wide;  // int64, else int32
  int64_t row_strides[kMaxRowDims];
};

// What `counts` holds.
enum Count { kLabeled = 0, kStudentTop1, kStudentTop5, kTeacherTop1, kTeacherTop5, kCounts };

struct MeanTeacherLoss {
  Operand student, second, teacher;  // second: null data with one head
  Operand dstudent, dsecond;         // null data where nobody needs them
  Labels labels;
  int64_t ignore_index;
  bool kl;          // D
  bool by_labeled;  // how class_loss is normalised
  Number consistency_weight, logit_distance_cost;
  void* total;      // one element of the accumulator
  void* parts;      // three: class_loss, consistency_loss, logit_distance
  int64_t* counts;  // [kCounts], over labeled rows
  int64_t rows, classes;
  int64_t row_sizes[kMaxRowDims];
  int device;
  void* stream;

  bool doubles() const {
    return student.dtype == Dtype::f64 || teacher.dtype == Dtype::f64 || second.dtype == Dtype::f64;
  }
};

void mean_teacher_loss_cpu(const MeanTeacherLoss& args);
#if defined(MTK_CUDA)
void mean_teacher_loss_cuda(const MeanTeacherLoss& args);
#else
constexpr Kernel<MeanTeacherLoss> mean_teacher_loss_cuda = nullptr;
#endif

}  // namespace mtk
