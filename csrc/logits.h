// Student and teacher logits, and what the losses take beside them, checked and laid out for the kernels.
#pragma once
#include <cfloat>
#include <optional>
#include <string>

#include "consistency.h"
#include "tensor.h"

namespace mtk {

// What a number must be, both ends in it.
struct Range {
  double least, most;
  const char* must;
};

constexpr Range kShare{0, 1, "be between 0 and 1"};
constexpr Range kBelowOne{0, 1 - DBL_EPSILON / 2, "be at least 0 and below 1"};
constexpr Range kAtLeastZero{0, DBL_MAX, "be at least 0 and finite"};
constexpr Range kPositive{DBL_TRUE_MIN, DBL_MAX, "be positive and finite"};
// Of logits: past them 1 / T in fp32 would be 0 or infinite, and 0 times a class of -inf NaN.
constexpr Range kTemperatures{1e-30, 1e30, "be between 1e-30 and 1e30"};

// A number, but no tensor: looking at one would wait for the GPU.
double read_float(const Argument& argument, const py::object& number, const Range& range,
                  const char* kind = "be a number");

int64_t read_int(const Argument& argument, const py::object& number, int64_t least, int64_t most,
                 const std::string& must);

// `dim`, an int, counted from the front. name: of the view.
int64_t read_dim(const char* op, const py::object& dim, const char* name, const TensorView& view);

// Refuses what no loss can take; gives `dim`, an int, counted from the front.
int64_t check_logits(const char* op, const TensorView& student, const TensorView& teacher,
                     const py::object& dim);

// Refuses logits that are not as the student's: `name` is theirs.
void check_beside(const char* op, const char* name, const TensorView& student, const TensorView& other);

// Refuses what has not the student's shape without `dim`, or another device.
void check_row_shape(const Argument& argument, const TensorView& view, int64_t dim,
                     const TensorView& student);

Reduction read_reduction(const char* op, const py::object& reduction);

// A number, or one fp32 or fp64 in a tensor: on the CPU it is read now, on the device of `like`, whose name
// is beside, by the kernel.
Number read_scalar(const Argument& argument, const py::object& number, const Range& range, const char* beside,
                   const TensorView& like);

// Checks the LossOptions of mtkernels/_options.py, also that the op has those that are not at their default,
// and fills all of them but the weight's strides. weight: filled where there is one.
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
