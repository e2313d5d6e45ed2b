// Checking logits and options, and merging the dims of their rows.
#include "logits.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mtk {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string range_text(double least, double most) {
  if (most == kInfinity) return least == 0 ? "be at least 0 and finite" : "be finite";
  return "be between " + std::string(py::str(py::int_(static_cast<int64_t>(least)))) + " and " +
         std::string(py::str(py::int_(static_cast<int64_t>(most))));
}

double read_float(const Argument& argument, const py::object& number, const char* kind) {
  if (PyFloat_CheckExact(number.ptr())) return PyFloat_AS_DOUBLE(number.ptr());
  const double value = PyFloat_AsDouble(number.ptr());
  if (value != -1 || !PyErr_Occurred()) return value;
  const bool overflow = PyErr_ExceptionMatches(PyExc_OverflowError);
  PyErr_Clear();
  if (overflow) return kInfinity;
  refuse(Refusal::type, argument, kind, Py_TYPE(number.ptr())->tp_name);
}

double read_temperature(const Argument& argument, const py::object& number) {
  const double value = read_float(argument, number, "be a number");
  if (!(value > 0 && value < kInfinity && 1 / value < kInfinity))
    refuse(Refusal::value, argument, "be positive and finite", py::str(number));
  return value;
}

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

}  // namespace

int64_t check_logits(const char* op, const TensorView& student, const TensorView& teacher,
                     const py::object& dim) {
  const Argument s{op, "student"};
  if (!student.is_float()) refuse(Refusal::type, s, kFloatDtypes, student.attribute("dtype"));
  if (!teacher.is_float()) refuse(Refusal::type, {op, "teacher"}, kFloatDtypes, teacher.attribute("dtype"));
  if (student.ndim == 0) refuse(Refusal::value, s, "have a dim of classes", "a 0-d tensor");
  check_beside(op, "teacher", student, teacher);
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

Number read_scalar(const Argument& argument, const py::object& number, double least, double most,
                   const TensorView& like) {
  Number result{0, nullptr, Dtype::f64};
  if (is_tensor(number.ptr())) {
    const TensorView view = TensorView::of(number.ptr(), argument);
    if (view.numel() != 1)
      refuse(Refusal::value, argument, "be a number or hold one", "shape " + view.shape_text());
    if (!view.is_float() || view.dtype.bits < 32)
      refuse(Refusal::type, argument, "be float32 or float64", view.attribute("dtype"));
    result = {0, view.address(), view.float_dtype()};
    if (!view.on_cpu()) {
      if (view.same_device(like)) return result;
      refuse(Refusal::value, argument,
             "be on the CPU or on the device of student (" + like.attribute("device") + ")",
             view.attribute("device"));
    }
    result = {result.get(), nullptr, Dtype::f64};
  } else {
    result.value = read_float(argument, number, "be a number or a torch.Tensor that holds one");
  }
  if (!(result.value >= least && result.value <= most) || std::isinf(result.value)) {
    refuse(Refusal::value, argument, range_text(least, most), py::str(py::float_(result.value)));
  }
  return result;
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
  args.student_scale = 1 / read_temperature({op, "student_temperature"}, field(kStudentTemperature));
  args.teacher_scale = 1 / read_temperature({op, "teacher_temperature"}, field(kTeacherTemperature));
  if (const auto center = field(kCenter); !center.is_none())
    read_center({op, "center"}, center, student.shape[dim], student, args.center);
  if (const auto rows = field(kWeight); !rows.is_none())
    weight = read_weight({op, "weight"}, rows, dim, student);
  if (const auto threshold = field(kThreshold); !threshold.is_none()) {
    args.has_threshold = true;
    args.threshold = read_scalar({op, "threshold"}, threshold, 0, 1, student);
  }
  const auto hard = field(kHard);
  if (!PyBool_Check(hard.ptr()))
    refuse(Refusal::type, {op, "hard"}, "be a bool", Py_TYPE(hard.ptr())->tp_name);
  args.hard = hard.ptr() == Py_True;
  const auto smoothing = field(kSmoothing);
  args.label_smoothing = read_float({op, "label_smoothing"}, smoothing, "be a number");
  if (!(args.label_smoothing >= 0 && args.label_smoothing < 1))
    refuse(Refusal::value, {op, "label_smoothing"}, "be at least 0 and below 1", py::str(smoothing));
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
