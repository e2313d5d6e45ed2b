// Student and teacher logits, checked and laid out for the losses of consistency.h.
#pragma once
#include "consistency.h"
#include "tensor.h"

namespace mtk {

// Refuses what no loss can take; gives `dim`, an int, counted from the front.
int64_t check_logits(const char* op, const TensorView& student, const TensorView& teacher,
                     const py::object& dim);

Reduction read_reduction(const char* op, const py::object& reduction);

// Fills operands, rows and classes; row dims that lie together in every operand are merged. dstudent: null
// for none.
void fill_operands(const char* op, int64_t dim, const TensorView& student, const TensorView& teacher,
                   const TensorView* dstudent, Consistency& args);

}  // namespace mtk
