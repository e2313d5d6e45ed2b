// The losses on logits, bound: arguments checked, results allocated, the struct filled, the kernel called.
#include <pybind11/gil_safe_call_once.h>

#include <cstdint>
#include <optional>
#include <string>

#include "bindings.h"
#include "logit_mse.h"
#include "logits.h"
#include "mean_teacher_loss.h"
#include "softmax_cross_entropy.h"
#include "softmax_js.h"
#include "softmax_kl.h"
#include "softmax_mse.h"
#include "softmax_reverse_kl.h"
#include "tensor.h"

namespace mtk {
namespace {

// What results are allocated with, looked up once. The 0-d tensors are what a CPU's loss is made like: 1 us
// less than `new_empty`.
struct Torch {
  py::object empty_like, float32, float64, int64, scalar32, scalar64, dtype_name = py::make_tuple("dtype");
};

const Torch& torch() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> storage;
  return storage
      .call_once_and_store_result([] {
        const py::module_ module = py::module_::import("torch");
        const py::object float32 = module.attr("float32"), float64 = module.attr("float64");
        const auto scalar = [&](const py::object& dtype) {
          return module.attr("zeros")(py::tuple(), py::arg("dtype") = dtype, py::arg("device") = "cpu");
        };
        return Torch{module.attr("empty_like"), float32,         float64,
                     module.attr("int64"),      scalar(float32), scalar(float64)};
      })
      .get_stored();
}

py::object checked(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// Uninitialised, on the device of `like`.
py::object empty(const TensorView& like, const py::object& shape, const py::object& dtype) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> name;
  const py::object& method =
      name.call_once_and_store_result([] { return py::object(py::str("new_empty")); }).get_stored();
  PyObject* arguments[] = {like.object, shape.ptr(), dtype.ptr()};
  return checked(PyObject_VectorcallMethod(method.ptr(), arguments, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                           torch().dtype_name.ptr()));
}

py::object empty_scalar(const TensorView& like, bool doubles) {
  if (!like.on_cpu()) return empty(like, py::tuple(), doubles ? torch().float64 : torch().float32);
  PyObject* arguments[] = {(doubles ? torch().scalar64 : torch().scalar32).ptr()};
  return checked(PyObject_Vectorcall(torch().empty_like.ptr(), arguments, 1, nullptr));
}

py::object empty_loss(const TensorView& student, int64_t dim, bool doubles, Reduction reduction) {
  if (reduction != Reduction::none) return empty_scalar(student, doubles);
  py::list sizes;
  for (int64_t i = 0; i < student.ndim; ++i) {
    if (i != dim) sizes.append(student.shape[i]);
  }
  return empty(student, py::tuple(sizes), doubles ? torch().float64 : torch().float32);
}

// Uninitialised, laid out like the logits. fp32 for fp16 logits: fp16 would lose what a loss scale brings
// back later.
py::object empty_gradient(const TensorView& logits) {
  const bool half = logits.float_dtype() == Dtype::f16;
  PyObject* arguments[] = {logits.object, torch().float32.ptr()};
  return checked(
      PyObject_Vectorcall(torch().empty_like.ptr(), arguments, 1, half ? torch().dtype_name.ptr() : nullptr));
}

// A tensor that a kernel may have to write, and its view.
struct Output {
  py::object tensor = py::none();
  std::optional<TensorView> view;

  void make(py::object made) {
    tensor = std::move(made);
    view = TensorView::of(tensor.ptr(), {"", ""});
  }
  const TensorView* get() const { return view ? &*view : nullptr; }
};

// 1 the student's, 2 the teacher's, 3 both.
int64_t read_gradients(const char* op, const py::object& gradients) {
  return read_int({op, "gradients"}, gradients, 0, 3,
                  "be 0 (none), 1 (the student's), 2 (the teacher's) or 3 (both)");
}

int64_t check_consistency_views(const char* op, const TensorView& student, const TensorView& teacher,
                                const py::object& dim, const py::object& reduction, const py::object& options,
                                Consistency& args, std::optional<TensorView>& weight) {
  const int64_t classes_dim = check_logits(op, student, teacher, dim);
  args.reduction = read_reduction(op, reduction);
  read_loss_options(op, options, classes_dim, student, args, weight);
  return classes_dim;
}

void check_consistency(const char* op, const py::object& student, const py::object& teacher,
                       const py::object& dim, const py::object& reduction, const py::object& options,
                       const py::object& gradients) {
  Consistency args{};
  std::optional<TensorView> weight;
  check_consistency_views(op, TensorView::of(student.ptr(), {op, "student"}),
                          TensorView::of(teacher.ptr(), {op, "teacher"}), dim, reduction, options, args,
                          weight);
  read_gradients(op, gradients);
}

template <Kernel<Consistency> cpu>
py::tuple consistency(const char* op, Kernel<Consistency> cuda, const py::object& student,
                      const py::object& teacher, const py::object& dim, const py::object& reduction,
                      const py::object& gradients, const py::object& options) {
  const TensorView s = TensorView::of(student.ptr(), {op, "student"}),
                   t = TensorView::of(teacher.ptr(), {op, "teacher"});
  Consistency args{};
  std::optional<TensorView> weight;
  const int64_t along = check_consistency_views(op, s, t, dim, reduction, options, args, weight);
  const int64_t wanted = read_gradients(op, gradients);
  const bool doubles = s.float_dtype() == Dtype::f64 || t.float_dtype() == Dtype::f64;
  Output dstudent, dteacher, utilization;
  if (wanted & 1) dstudent.make(empty_gradient(s));
  if (wanted & 2) dteacher.make(empty_gradient(t));
  const Placed placed[] = {{&s, &args.student},
                           {&t, &args.teacher},
                           {dstudent.get(), &args.dstudent},
                           {dteacher.get(), &args.dteacher},
                           {weight ? &*weight : nullptr, &args.weight, false}};
  args.rows = place(op, along, placed, 5, args.row_sizes);
  args.classes = s.shape[along];
  const py::object loss = empty_loss(s, along, doubles, args.reduction);
  args.loss = TensorView::of(loss.ptr(), {op, "loss"}).address();
  if (args.has_threshold) {
    utilization.make(empty_scalar(s, doubles));
    args.utilization = utilization.view->address();
  }
  launch({op, "student"}, s, args, cpu, cuda);
  return py::make_tuple(loss, dstudent.tensor, dteacher.tensor, utilization.tensor);
}

// ---- mean_teacher_loss

constexpr const char* kObjective = "mean_teacher_loss";

int64_t label_at(const MeanTeacherLoss& args, int64_t offset) {
  return args.labels.wide ? static_cast<const int64_t*>(args.labels.data)[offset]
                          : static_cast<const int32_t*>(args.labels.data)[offset];
}

// On the CPU alone: a GPU's labels are not looked at here.
void check_label_range(const MeanTeacherLoss& args) {
  const Operand rows{nullptr,
                     Dtype::f32,
                     0,
                     {args.labels.row_strides[0], args.labels.row_strides[1], args.labels.row_strides[2],
                      args.labels.row_strides[3]}};
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t label = label_at(args, row_offset(rows, args.row_sizes, row));
    if (label == args.ignore_index || (label >= 0 && label < args.classes)) continue;
    refuse(Refusal::value, {kObjective, "labels", row},
           "be a class from 0 to " + std::to_string(args.classes - 1) + " or ignore_index (" +
               std::to_string(args.ignore_index) + ")",
           std::to_string(label));
  }
}

// What is given beside the numbers, as views.
struct ObjectiveViews {
  TensorView student, teacher, labels;
  std::optional<TensorView> second;
};

TensorView read_labels(const py::object& labels, int64_t dim, const TensorView& student) {
  const Argument argument{kObjective, "labels"};
  const TensorView view = TensorView::of(labels.ptr(), argument);
  if (view.dtype.code != kDLInt || (view.dtype.bits != 32 && view.dtype.bits != 64))
    refuse(Refusal::type, argument, "be int64 or int32", view.attribute("dtype"));
  check_row_shape(argument, view, dim, student);
  return view;
}

// Checks all arguments, and fills what does not depend on the outputs.
int64_t read_objective(ObjectiveViews& views, const py::object& student, const py::object& teacher,
                       const py::object& labels, const py::object& second, const py::object& dim,
                       const py::object& consistency_weight, const py::object& logit_distance_cost,
                       const py::object& ignore_index, MeanTeacherLoss& args) {
  views.student = TensorView::of(student.ptr(), {kObjective, "student"});
  views.teacher = TensorView::of(teacher.ptr(), {kObjective, "teacher"});
  const int64_t along = check_logits(kObjective, views.student, views.teacher, dim);
  views.labels = read_labels(labels, along, views.student);
  if (!second.is_none()) {
    views.second = TensorView::of(second.ptr(), {kObjective, "second"});
    check_beside(kObjective, "second", views.student, *views.second);
  }
  args.consistency_weight = read_scalar({kObjective, "consistency_weight"}, consistency_weight, kAtLeastZero,
                                        "student", views.student);
  args.logit_distance_cost = read_scalar({kObjective, "logit_distance_cost"}, logit_distance_cost,
                                         kAtLeastZero, "student", views.student);
  args.ignore_index = read_int({kObjective, "ignore_index"}, ignore_index, INT64_MIN, INT64_MAX,
                               "be at least -2^63 and below 2^63");
  return along;
}

void place_objective(int64_t along, const ObjectiveViews& views, const Output& dstudent,
                     const Output& dsecond, MeanTeacherLoss& args) {
  Operand labels{};
  const Placed placed[] = {{&views.student, &args.student},
                           {&views.teacher, &args.teacher},
                           {views.second ? &*views.second : nullptr, &args.second},
                           {dstudent.get(), &args.dstudent},
                           {dsecond.get(), &args.dsecond},
                           {&views.labels, &labels, false}};
  args.rows = place(kObjective, along, placed, 6, args.row_sizes);
  args.classes = views.student.shape[along];
  args.labels.data = labels.data;
  args.labels.wide = views.labels.dtype.bits == 64;
  std::copy_n(labels.row_strides, kMaxRowDims, args.labels.row_strides);
  if (views.student.on_cpu()) check_label_range(args);
}

void check_mean_teacher_loss(const py::object& student, const py::object& teacher, const py::object& labels,
                             const py::object& second, const py::object& dim,
                             const py::object& consistency_weight, const py::object& logit_distance_cost,
                             const py::object& ignore_index) {
  ObjectiveViews views;
  MeanTeacherLoss args{};
  const int64_t along = read_objective(views, student, teacher, labels, second, dim, consistency_weight,
                                       logit_distance_cost, ignore_index, args);
  place_objective(along, views, {}, {}, args);
}

py::tuple mean_teacher_loss(const py::object& student, const py::object& teacher, const py::object& labels,
                            const py::object& second, const py::object& dim,
                            const py::object& consistency_weight, const py::object& logit_distance_cost,
                            bool kl, bool by_labeled, const py::object& ignore_index, bool with_gradient) {
  ObjectiveViews views;
  MeanTeacherLoss args{};
  const int64_t along = read_objective(views, student, teacher, labels, second, dim, consistency_weight,
                                       logit_distance_cost, ignore_index, args);
  args.kl = kl, args.by_labeled = by_labeled;
  Output total, parts, counts, dstudent, dsecond;
  if (with_gradient) dstudent.make(empty_gradient(views.student));
  if (with_gradient && views.second) dsecond.make(empty_gradient(*views.second));
  place_objective(along, views, dstudent, dsecond, args);
  const py::object& dtype = args.doubles() ? torch().float64 : torch().float32;
  total.make(empty_scalar(views.student, args.doubles()));
  parts.make(empty(views.student, py::make_tuple(3), dtype));
  counts.make(empty(views.student, py::make_tuple(static_cast<int>(kCounts)), torch().int64));
  args.total = total.view->address(), args.parts = parts.view->address();
  args.counts = reinterpret_cast<int64_t*>(counts.view->address());
  launch({kObjective, "student"}, views.student, args, mean_teacher_loss_cpu, mean_teacher_loss_cuda);
  return py::make_tuple(total.tensor, parts.tensor, counts.tensor, dstudent.tensor, dsecond.tensor);
}

template <Kernel<Consistency> cpu>
void bind_consistency(py::module_& m, const char* op, Kernel<Consistency> cuda) {
  using namespace py::literals;
  m.def(
      op,
      [op, cuda](const py::object& student, const py::object& teacher, const py::object& dim,
                 const py::object& reduction, const py::object& gradients, const py::object& options) {
        return consistency<cpu>(op, cuda, student, teacher, dim, reduction, gradients, options);
      },
      "student"_a, "teacher"_a, "dim"_a = -1, "reduction"_a = "mean", "gradients"_a = 0,
      "options"_a = py::none());
}

}  // namespace

void bind_losses(py::module_& m) {
  using namespace py::literals;
  bind_consistency<softmax_mse_cpu>(m, "softmax_mse", softmax_mse_cuda);
  bind_consistency<softmax_kl_cpu>(m, "softmax_kl", softmax_kl_cuda);
  bind_consistency<softmax_reverse_kl_cpu>(m, "softmax_reverse_kl", softmax_reverse_kl_cuda);
  bind_consistency<softmax_js_cpu>(m, "softmax_js", softmax_js_cuda);
  bind_consistency<softmax_cross_entropy_cpu>(m, "softmax_cross_entropy", softmax_cross_entropy_cuda);
  bind_consistency<logit_mse_cpu>(m, "logit_mse", logit_mse_cuda);
  m.def("check_consistency", &check_consistency, "op"_a, "student"_a, "teacher"_a, "dim"_a, "reduction"_a,
        "options"_a = py::none(), "gradients"_a = 0);
  m.def("mean_teacher_loss", &mean_teacher_loss, "student"_a, "teacher"_a, "labels"_a,
        "second"_a = py::none(), "dim"_a = -1, "consistency_weight"_a = 1.0, "logit_distance_cost"_a = 0.0,
        "kl"_a = false, "by_labeled"_a = false, "ignore_index"_a = -1, "with_gradient"_a = false);
  m.def("check_mean_teacher_loss", &check_mean_teacher_loss, "student"_a, "teacher"_a, "labels"_a, "second"_a,
        "dim"_a, "consistency_weight"_a, "logit_distance_cost"_a, "ignore_index"_a);
}

}  // namespace mtk
