// Student and teacher logits, and what the losses take beside them, checked and laid out for the kernels.
#pragma once
#include <optional>

#include "consistency.h"
#include "tensor.h"

namespace mtk {

// Refuses what no loss can take; gives `dim`, an int, counted from the front.
int64_t check_logits(const char* op, const TensorView& student, const TensorView& teacher,
                     const py::object& dim);

// Refuses logits that are not as the student's: `name` is theirs.
void check_beside(const char* op, const char* name, const TensorView& student, const TensorView& other);

// Refuses what has not the student's shape without `dim`, or another device.
void check_row_shape(const Argument& argument, const TensorView& view, int64_t dim,
                     const TensorView& student);

Reduction read_reduction(const char* op, const py::object& reduction);

// A number between least and most, or one fp32 or fp64 in a tensor: on the CPU it is read now, on the device
// of `like` by the kernel.
Number read_scalar(const Argument& argument, const py::object& number, double least, double most,
                   const TensorView& like);

// Checks the LossOptions of mtkernels/_options.py, and fills all of them but the weight's strides. weight:
// filled where there is one.
void read_loss_options(const char* op, const py::object& options, int64_t dim, const TensorView& student,
                       Consistency& args, std::optional<TensorView>& weight);

// One tensor of a loss, and the operand that it fills; view null: none, which leaves the operand's data null.
struct Placed {
  const TensorView* view;
  Operand* operand;
  bool has_classes = true;  // else it has the student's dims but `dim`
};

// Fills operands and row sizes, and gives the number of rows. Row dims that lie together in every operand are
// merged; the first is the student, which is named where there are too many.
int64_t place(const char* op, int64_t dim, const Placed* placed, int count,
              int64_t (&row_sizes)[kMaxRowDims]);

}  // namespace mtk
