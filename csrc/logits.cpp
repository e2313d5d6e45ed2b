// Checking logits and options, and merging the dims of their rows.
#include "logits.h"

#include <algorithm>
#include <cstring>

namespace mtk {
namespace {

void check_device(const Argument& argument, const TensorView& view, const TensorView& student) {
  if (view.same_device(student)) return;
  refuse(Refusal::value, argument, "be on the device of student (" + student.attribute("device") + ")",
         view.attribute("device"));
}

void read_center(const Argument& argument, const py::object& center, int64_t classes,
                 const TensorView& student, Operand& operand) {
  const TensorView view = TensorView::of(center.ptr(), argument);
  if (!view.is_float()) refuse(Refusal::type, argument, kFloatDtypes, view.attribute("dtype"));
  check_device(argument, view, student);
  if (view.ndim != 1 || view.shape[0] != classes) {
    refuse(Refusal::value, argument,
           "have shape [" + std::to_string(classes) + "], one number for each class", view.shape_text());
  }
  operand.data = view.address();
  operand.dtype = view.float_dtype();
  operand.class_stride = view.strides[0];
}

TensorView read_weight(const Argument& argument, const py::object& weight, int64_t dim,
                       const TensorView& student) {
  const TensorView view = TensorView::of(weight.ptr(), argument);
  if (!view.is_float()) refuse(Refusal::type, argument, kFloatDtypes, view.attribute("dtype"));
  check_row_shape(argument, view, dim, student);
  return view;
}

// The fields of LossOptions, in its order.
enum Field {
  kStudentTemperature,
  kTeacherTemperature,
  kCenter,
  kWeight,
  kThreshold,
  kHard,
  kSmoothing,
  kFields
};

// Options that an op does not have: one backend's kernel would heed them, another's not.
void refuse_foreign_options(const char* op, const py::object& options, const Consistency& args) {
  const auto refuse_unless = [&](bool is_default, Field at, const char* name, const char* must) {
    if (is_default) return;
    PyObject* value = PyTuple_GET_ITEM(options.ptr(), at);
    refuse(Refusal::value, {op, name}, "be " + std::string(must) + ", as this loss has no such option",
           is_tensor(value) ? "a tensor" : std::string(py::str(value)));
  };
  if (std::strcmp(op, "logit_mse") == 0) {
    refuse_unless(args.student_scale == 1, kStudentTemperature, "student_temperature", "1");
    refuse_unless(args.teacher_scale == 1, kTeacherTemperature, "teacher_temperature", "1");
    refuse_unless(!args.center.data, kCenter, "center", "None");
    refuse_unless(!args.has_threshold, kThreshold, "threshold", "None");
  }
  if (std::strcmp(op, "softmax_cross_entropy") != 0) {
    refuse_unless(!args.hard, kHard, "hard", "False");
    refuse_unless(args.label_smoothing == 0, kSmoothing, "label_smoothing", "0");
  }
}

std::string int_text(const py::object& number) {
  if (PyObject* text = PyObject_Str(number.ptr())) return py::reinterpret_steal<py::str>(text);
  PyErr_Clear();  // Python prints no more than 4300 digits
  return "an int of thousands of digits";
}

void check_range(const Argument& argument, double value, const Range& range) {
  if (!(value >= range.least && value <= range.most))
    refuse(Refusal::value, argument, range.must, py::str(py::float_(value)));
}

}  // namespace

double read_float(const Argument& argument, const py::object& number, const Range& range, const char* kind) {
  double value;
  if (PyFloat_CheckExact(number.ptr())) {
    value = PyFloat_AS_DOUBLE(number.ptr());
  } else {  // a tensor has a __float__ too, which would wait for the GPU
    if (is_tensor(number.ptr())) refuse(Refusal::type, argument, kind, Py_TYPE(number.ptr())->tp_name);
    value = PyFloat_AsDouble(number.ptr());
    if (value == -1 && PyErr_Occurred()) {
      const bool overflow = PyErr_ExceptionMatches(PyExc_OverflowError);
      PyErr_Clear();
      if (overflow) refuse(Refusal::value, argument, range.must, "a larger number than a float holds");
      refuse(Refusal::type, argument, kind, Py_TYPE(number.ptr())->tp_name);
    }
  }
  check_range(argument, value, range);
  return value;
}

int64_t read_int(const Argument& argument, const py::object& number, int64_t least, int64_t most,
                 const std::string& must) {
  if (!PyLong_Check(number.ptr()))
    refuse(Refusal::type, argument, "be an int", Py_TYPE(number.ptr())->tp_name);
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0) refuse(Refusal::value, argument, must, int_text(number));
  if (value < least || value > most) refuse(Refusal::value, argument, must, std::to_string(value));
  return value;
}

int64_t read_dim(const char* op, const py::object& dim, const char* name, const TensorView& view) {
  const int64_t index = read_int({op, "dim"}, dim, -view.ndim, view.ndim - 1,
                                 "be a dim of " + std::string(name) + " " + view.shape_text());
  return index < 0 ? index + view.ndim : index;
}

int64_t check_logits(const char* op, const TensorView& student, const TensorView& teacher,
                     const py::object& dim) {
  const Argument s{op, "student"};
  if (!student.is_float()) refuse(Refusal::type, s, kFloatDtypes, student.attribute("dtype"));
  if (!teacher.is_float()) refuse(Refusal::type, {op, "teacher"}, kFloatDtypes, teacher.attribute("dtype"));
  if (student.ndim == 0) refuse(Refusal::value, s, "have a dim of classes", "a 0-d tensor");
  check_beside(op, "teacher", student, teacher);
  const int64_t wrapped = read_dim(op, dim, "student", student);
  if (student.shape[wrapped] == 0)
    refuse(Refusal::value, s, "have at least one class", "shape " + student.shape_text());
  return wrapped;
}

void check_beside(const char* op, const char* name, const TensorView& student, const TensorView& other) {
  const Argument argument{op, name};
  if (!other.is_float()) refuse(Refusal::type, argument, kFloatDtypes, other.attribute("dtype"));
  if (!student.same_shape(other)) {
    refuse(Refusal::value, argument, "have the shape of student " + student.shape_text(), other.shape_text());
  }
  check_device(argument, other, student);
}

void check_row_shape(const Argument& argument, const TensorView& view, int64_t dim,
                     const TensorView& student) {
  bool fits = view.ndim == student.ndim - 1;
  std::string shape;
  for (int32_t i = 0, at = 0; i < student.ndim; ++i) {
    if (i == dim) continue;
    shape += (at ? ", " : "") + std::to_string(student.shape[i]);
    fits = fits && at < view.ndim && view.shape[at] == student.shape[i];
    ++at;
  }
  if (!fits)
    refuse(Refusal::value, argument, "have shape [" + shape + "], one number for each row",
           view.shape_text());
  check_device(argument, view, student);
}

Reduction read_reduction(const char* op, const py::object& reduction) {
  if (PyUnicode_Check(reduction.ptr())) {
    if (PyUnicode_CompareWithASCIIString(reduction.ptr(), "mean") == 0) return Reduction::mean;
    if (PyUnicode_CompareWithASCIIString(reduction.ptr(), "sum") == 0) return Reduction::sum;
    if (PyUnicode_CompareWithASCIIString(reduction.ptr(), "none") == 0) return Reduction::none;
  }
  refuse(Refusal::value, {op, "reduction"}, "be 'mean', 'sum' or 'none'", py::repr(reduction));
}

Number read_scalar(const Argument& argument, const py::object& number, const Range& range, const char* beside,
                   const TensorView& like) {
  if (!is_tensor(number.ptr()))
    return {read_float(argument, number, range, "be a number or a torch.Tensor that holds one"), nullptr,
            Dtype::f64};
  const TensorView view = TensorView::of(number.ptr(), argument);
  if (view.numel() != 1)
    refuse(Refusal::value, argument, "be a number or hold one", "shape " + view.shape_text());
  if (!view.is_float() || view.dtype.bits < 32)
    refuse(Refusal::type, argument, "be float32 or float64", view.attribute("dtype"));
  const Number live{0, view.address(), view.float_dtype()};
  if (!view.on_cpu()) {
    if (view.same_device(like)) return live;
    refuse(Refusal::value, argument,
           "be on the CPU or on the device of " + std::string(beside) + " (" + like.attribute("device") + ")",
           view.attribute("device"));
  }
  check_range(argument, live.get(), range);
  return {live.get(), nullptr, Dtype::f64};
}

void read_loss_options(const char* op, const py::object& options, int64_t dim, const TensorView& student,
                       Consistency& args, std::optional<TensorView>& weight) {
  args.student_scale = args.teacher_scale = 1;
  if (options.is_none()) return;
  if (!PyTuple_Check(options.ptr()) || PyTuple_GET_SIZE(options.ptr()) != kFields)
    refuse(Refusal::type, {op, "options"}, "be LossOptions", Py_TYPE(options.ptr())->tp_name);
  const auto field = [&](Field at) {
    return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(options.ptr(), at));
  };
  args.student_scale = 1 / read_float({op, "student_temperature"}, field(kStudentTemperature), kTemperatures);
  args.teacher_scale = 1 / read_float({op, "teacher_temperature"}, field(kTeacherTemperature), kTemperatures);
  if (const auto center = field(kCenter); !center.is_none())
    read_center({op, "center"}, center, student.shape[dim], student, args.center);
  if (const auto rows = field(kWeight); !rows.is_none())
    weight = read_weight({op, "weight"}, rows, dim, student);
  if (const auto threshold = field(kThreshold); !threshold.is_none()) {
    args.has_threshold = true;
    args.threshold = read_scalar({op, "threshold"}, threshold, kShare, "student", student);
  }
  const auto hard = field(kHard);
  if (!PyBool_Check(hard.ptr()))
    refuse(Refusal::type, {op, "hard"}, "be a bool", Py_TYPE(hard.ptr())->tp_name);
  args.hard = hard.ptr() == Py_True;
  args.label_smoothing = read_float({op, "label_smoothing"}, field(kSmoothing), kBelowOne);
  refuse_foreign_options(op, options, args);
}

int64_t place(const char* op, int64_t dim, const Placed* placed, int count,
              int64_t (&row_sizes)[kMaxRowDims]) {
  const TensorView& student = *placed[0].view;
  const auto stride = [&](const Placed& one, int64_t i) {
    return !one.view ? 0 : one.view->strides[one.has_classes || i < dim ? i : i - 1];
  };
  for (int k = 0; k < count; ++k) {
    Operand& operand = *placed[k].operand;
    std::fill_n(operand.row_strides, kMaxRowDims, 0);
    if (!placed[k].view) continue;
    operand.data = placed[k].view->address();
    operand.dtype = placed[k].view->float_dtype();
    operand.class_stride = placed[k].has_classes ? placed[k].view->strides[dim] : 0;
  }
  std::fill_n(row_sizes, kMaxRowDims, 1);
  int64_t rows = 1;
  int slot = kMaxRowDims;
  for (int64_t i = student.ndim - 1; i >= 0; --i) {
    const int64_t size = student.shape[i];
    if (i == dim || size == 1) continue;
    rows *= size;
    bool merges = slot < kMaxRowDims;
    for (int k = 0; k < count && merges; ++k) {
      merges = stride(placed[k], i) == placed[k].operand->row_strides[slot] * row_sizes[slot];
    }
    if (!merges && --slot < 0) {
      refuse(Refusal::not_implemented, {op, "student"},
             "have rows along at most 4 dims that lie apart in memory", "strides " + student.stride_text());
    }
    for (int k = 0; k < count && !merges; ++k) placed[k].operand->row_strides[slot] = stride(placed[k], i);
    row_sizes[slot] *= size;
  }
  return rows;
}

}  // namespace mtk
