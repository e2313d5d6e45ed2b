// The pybind11 module `_C`: per op one function that checks its arguments, fills the op's struct, releases
// the GIL and calls the kernel of the tensors' device. Every check of the project is here, so that all
// backends refuse alike.
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings.h"
#include "build_info.h"
#include "logits.h"
#include "scale.h"
#include "softmax_kl.h"
#include "softmax_mse.h"
#include "tensor.h"

namespace mtk {
namespace {

// ---- the losses

py::object torch_attribute(const char* name) { return py::module_::import("torch").attr(name); }

// An uninitialised loss: one element, or the student's shape without `dim`.
py::object empty_loss(const TensorView& student, int64_t dim, bool doubles, Reduction reduction) {
  py::list shape;
  for (int64_t i = 0; reduction == Reduction::none && i < student.ndim; ++i) {
    if (i != dim) shape.append(student.shape[i]);
  }
  py::object like = py::reinterpret_borrow<py::object>(student.object);
  return like.attr("new_empty")(shape, py::arg("dtype") = torch_attribute(doubles ? "float64" : "float32"));
}

// Uninitialised, laid out like the student. fp32 for fp16 logits: fp16 would lose what a loss scale brings
// back later.
py::object empty_gradient(const TensorView& student) {
  py::handle like = student.object;
  if (student.float_dtype() != Dtype::f16) return torch_attribute("empty_like")(like);
  return torch_attribute("empty_like")(like, py::arg("dtype") = torch_attribute("float32"));
}

void check_consistency(const char* op, const py::object& student, const py::object& teacher,
                       const py::object& dim, const py::object& reduction) {
  check_logits(op, TensorView::of(student.ptr(), {op, "student"}),
               TensorView::of(teacher.ptr(), {op, "teacher"}), dim);
  read_reduction(op, reduction);
}

py::tuple consistency(const char* op, const py::object& student, const py::object& teacher,
                      const py::object& dim, const py::object& reduction, bool with_gradient,
                      Kernel<Consistency> cpu, Kernel<Consistency> cuda) {
  const TensorView s = TensorView::of(student.ptr(), {op, "student"}),
                   t = TensorView::of(teacher.ptr(), {op, "teacher"});
  const int64_t classes_dim = check_logits(op, s, t, dim);
  Consistency args{};
  args.reduction = read_reduction(op, reduction);
  py::object loss = empty_loss(s, classes_dim, s.float_dtype() == Dtype::f64 || t.float_dtype() == Dtype::f64,
                               args.reduction);
  py::object dstudent = with_gradient ? empty_gradient(s) : py::none();
  std::optional<TensorView> gradient;
  if (with_gradient) gradient = TensorView::of(dstudent.ptr(), {op, "dstudent"});
  fill_operands(op, classes_dim, s, t, gradient ? &*gradient : nullptr, args);
  args.loss = TensorView::of(loss.ptr(), {op, "loss"}).address();
  launch({op, "student"}, s, args, cpu, cuda);
  return py::make_tuple(loss, dstudent);
}

py::tuple softmax_mse(const py::object& student, const py::object& teacher, const py::object& dim,
                      const py::object& reduction, bool with_gradient) {
  return consistency("softmax_mse", student, teacher, dim, reduction, with_gradient, softmax_mse_cpu,
                     softmax_mse_cuda);
}

py::tuple softmax_kl(const py::object& student, const py::object& teacher, const py::object& dim,
                     const py::object& reduction, bool with_gradient) {
  return consistency("softmax_kl", student, teacher, dim, reduction, with_gradient, softmax_kl_cpu,
                     softmax_kl_cuda);
}

void scale_(const py::object& data, const py::object& factor) {
  const Argument argument{"scale_", "data"}, by{"scale_", "factor"};
  const TensorView view = TensorView::of(data.ptr(), argument), number = TensorView::of(factor.ptr(), by);
  if (!view.is_float()) refuse(Refusal::type, argument, kFloatDtypes, view.attribute("dtype"));
  if (!view.dense())
    refuse(Refusal::value, argument, "fill its memory without gaps or overlaps", view.stride_text());
  if (number.numel() != 1 || !number.is_float() || number.dtype.bits < 32 || !number.same_device(view)) {
    refuse(Refusal::value, by, "be one float32 or float64 on the device of data",
           number.attribute("dtype") + " " + number.shape_text() + " on " + number.attribute("device"));
  }
  Scale args{};
  args.data = view.address();
  args.dtype = view.float_dtype();
  args.count = view.numel();
  args.factor = number.address();
  args.factor_dtype = number.float_dtype();
  launch(argument, view, args, scale_cpu, scale_cuda);
}

}  // namespace
}  // namespace mtk

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  using namespace py::literals;
  m.doc() = "Native kernels of mtkernels. The public functions are those of the package.";
  mtk::bind_ema(m);
  mtk::bind_slots(m);
  mtk::bind_targets(m);
  m.def("softmax_mse", &mtk::softmax_mse, "student"_a, "teacher"_a, "dim"_a, "reduction"_a,
        "with_gradient"_a);
  m.def("softmax_kl", &mtk::softmax_kl, "student"_a, "teacher"_a, "dim"_a, "reduction"_a, "with_gradient"_a);
  m.def("check_consistency", &mtk::check_consistency, "op"_a, "student"_a, "teacher"_a, "dim"_a,
        "reduction"_a);
  m.def("scale_", &mtk::scale_, "data"_a, "factor"_a);
  m.def("build_info", &mtk::build_info, "Flags of this build and features of this CPU.");
}
