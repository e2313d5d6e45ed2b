// Checking logits, and merging the dims of their rows.
#include "logits.h"

#include <algorithm>
#include <utility>

namespace mtk {

int64_t check_logits(const char* op, const TensorView& student, const TensorView& teacher,
                     const py::object& dim) {
  const Argument s{op, "student"}, t{op, "teacher"};
  for (const auto& [view, argument] : {std::pair(&student, s), std::pair(&teacher, t)}) {
    if (!view->is_float()) refuse(Refusal::type, argument, kFloatDtypes, view->attribute("dtype"));
  }
  if (student.ndim == 0) refuse(Refusal::value, s, "have a dim of classes", "a 0-d tensor");
  if (!student.same_shape(teacher)) {
    refuse(Refusal::value, t, "have the shape of student " + student.shape_text(), teacher.shape_text());
  }
  if (!student.same_device(teacher)) {
    refuse(Refusal::value, t, "be on the device of student (" + student.attribute("device") + ")",
           teacher.attribute("device"));
  }
  if (!PyLong_Check(dim.ptr())) refuse(Refusal::type, {op, "dim"}, "be an int", Py_TYPE(dim.ptr())->tp_name);
  int overflow = 0;
  const int64_t index = PyLong_AsLongLongAndOverflow(dim.ptr(), &overflow),
                wrapped = index < 0 ? index + student.ndim : index;
  if (overflow != 0 || wrapped < 0 || wrapped >= student.ndim) {
    refuse(Refusal::value, {op, "dim"}, "be a dim of student " + student.shape_text(), py::str(dim));
  }
  if (student.shape[wrapped] == 0)
    refuse(Refusal::value, s, "have at least one class", "shape " + student.shape_text());
  return wrapped;
}

Reduction read_reduction(const char* op, const py::object& reduction) {
  if (PyUnicode_Check(reduction.ptr())) {
    const auto word = py::cast<std::string>(reduction);
    if (word == "mean") return Reduction::mean;
    if (word == "sum") return Reduction::sum;
    if (word == "none") return Reduction::none;
  }
  refuse(Refusal::value, {op, "reduction"}, "be 'mean', 'sum' or 'none'", py::repr(reduction));
}

void fill_operands(const char* op, int64_t dim, const TensorView& student, const TensorView& teacher,
                   const TensorView* dstudent, Consistency& args) {
  const TensorView* views[] = {&student, &teacher, dstudent ? dstudent : &student};
  Operand* operands[] = {&args.student, &args.teacher, &args.dstudent};
  for (int k = 0; k < 3; ++k) {
    operands[k]->data = k == 2 && !dstudent ? nullptr : views[k]->address();
    operands[k]->dtype = views[k]->float_dtype();
    operands[k]->class_stride = views[k]->strides[dim];
    std::fill_n(operands[k]->row_strides, kMaxRowDims, 0);
  }
  std::fill_n(args.row_sizes, kMaxRowDims, 1);
  args.rows = 1;
  args.classes = student.shape[dim];
  int slot = kMaxRowDims;
  for (int64_t i = student.ndim - 1; i >= 0; --i) {
    const int64_t size = student.shape[i];
    if (i == dim || size == 1) continue;
    args.rows *= size;
    bool merges = slot < kMaxRowDims;
    for (int k = 0; k < 3 && merges; ++k) {
      merges = views[k]->strides[i] == operands[k]->row_strides[slot] * args.row_sizes[slot];
    }
    if (!merges && --slot < 0) {
      refuse(Refusal::not_implemented, {op, "student"},
             "have rows along at most 4 dims that lie apart in memory", "strides " + student.stride_text());
    }
    if (!merges) {
      for (int k = 0; k < 3; ++k) operands[k]->row_strides[slot] = views[k]->strides[i];
    }
    args.row_sizes[slot] *= size;
  }
}

}  // namespace mtk
