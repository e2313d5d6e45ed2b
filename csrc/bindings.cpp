// The pybind11 module `_C`: per op one function that checks its arguments, fills the op's struct, releases
// the GIL and calls the kernel of the tensors' device. Every check of the project is here, so that all
// backends refuse alike.
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "build_info.h"
#include "ema_update.h"
#include "logits.h"
#include "pairs.h"
#include "scale.h"
#include "softmax_kl.h"
#include "softmax_mse.h"
#include "tensor.h"

namespace mtk {
namespace {

// Calls the kernel for the device; cuda is null in a build without CUDA.
template <class Args>
void launch(const Argument& argument, const TensorView& tensor, Args& args, Kernel<Args> cpu,
            Kernel<Args> cuda) {
  args.device = tensor.device.device_id;
  args.stream = current_stream(tensor.device);
  const bool on_cuda = tensor.device.device_type == kDLCUDA;
  if (!tensor.on_cpu() && !(on_cuda && cuda)) {
    refuse(Refusal::not_implemented, argument,
           cuda ? "be on the CPU or a CUDA device" : "be on the CPU (a build without CUDA kernels)",
           tensor.attribute("device"));
  }
  py::gil_scoped_release no_gil;
  (on_cuda ? cuda : cpu)(args);
}

// ---- ema_update

void check_decay(double decay) {
  if (!(decay >= 0 && decay <= 1)) {
    refuse(Refusal::value, {"ema_update", "decay"}, "be between 0 and 1", py::str(py::float_(decay)));
  }
}

// A number, a 0-d tensor in host memory (read now), or one on the weights' device (read by the kernel).
void read_decay(const py::object& decay, const TensorView& weights, EmaUpdate& args) {
  const Argument argument{"ema_update", "decay"};
  args.decay_data = nullptr;
  if (!is_tensor(decay.ptr())) {
    args.decay = PyFloat_AsDouble(decay.ptr());
    if (args.decay == -1 && PyErr_Occurred()) {
      const bool number = PyErr_ExceptionMatches(PyExc_OverflowError);
      PyErr_Clear();
      if (number)
        refuse(Refusal::value, argument, "be between 0 and 1", "a larger number than a float holds");
      refuse(Refusal::type, argument, "be a number or a torch.Tensor", Py_TYPE(decay.ptr())->tp_name);
    }
    return check_decay(args.decay);
  }
  const TensorView view = TensorView::of(decay.ptr(), argument);
  if (view.numel() != 1)
    refuse(Refusal::value, argument, "be a number or hold one", "shape " + view.shape_text());
  if (!view.is_float() || view.dtype.bits < 32) {
    refuse(Refusal::type, argument, "be float32 or float64", view.attribute("dtype"));
  }
  args.decay_dtype = view.float_dtype();
  if (view.on_cpu()) {
    args.decay = args.decay_dtype == Dtype::f64 ? *reinterpret_cast<const double*>(view.address())
                                                : *reinterpret_cast<const float*>(view.address());
    return check_decay(args.decay);
  }
  if (!view.same_device(weights)) {
    refuse(Refusal::value, argument,
           "be on the CPU or on the device of teacher (" + weights.attribute("device") + ")",
           view.attribute("device"));
  }
  args.decay_data = view.address();
}

void ema_update(const py::sequence& teacher, const py::sequence& student, const py::object& decay,
                Py_ssize_t copied, const py::object& names) {
  const Pairs pairs = read_pairs("ema_update", teacher, student, copied, names);
  if (!pairs.first) return;
  EmaUpdate args{};
  args.plan = &pairs.plan;
  read_decay(decay, *pairs.first, args);
  launch({"ema_update", "teacher", 0, names.is_none() ? nullptr : names.ptr()}, *pairs.first, args,
         ema_update_cpu, ema_update_cuda);
}

// The checked, chunked table as bytes, rows of four int64: what Triton's kernel walks.
py::bytes ema_rows(const py::sequence& teacher, const py::sequence& student, const py::object& decay,
                   Py_ssize_t copied, const py::object& names, int64_t target_rows) {
  const Pairs pairs = read_pairs("ema_update", teacher, student, copied, names);
  if (!pairs.first) return py::bytes();
  EmaUpdate args{};
  read_decay(decay, *pairs.first, args);
  const std::vector<Row> rows = pairs.plan.chunks(target_rows);
  return py::bytes(reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(Row));
}

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
  m.def("ema_update", &mtk::ema_update, "teacher"_a, "student"_a, "decay"_a, "copied"_a = 0,
        "names"_a = py::none());
  m.def("ema_rows", &mtk::ema_rows, "teacher"_a, "student"_a, "decay"_a, "copied"_a, "names"_a,
        "target_rows"_a);
  m.def("softmax_mse", &mtk::softmax_mse, "student"_a, "teacher"_a, "dim"_a, "reduction"_a,
        "with_gradient"_a);
  m.def("softmax_kl", &mtk::softmax_kl, "student"_a, "teacher"_a, "dim"_a, "reduction"_a, "with_gradient"_a);
  m.def("check_consistency", &mtk::check_consistency, "op"_a, "student"_a, "teacher"_a, "dim"_a,
        "reduction"_a);
  m.def("scale_", &mtk::scale_, "data"_a, "factor"_a);
  m.def("build_info", &mtk::build_info, "Flags of this build and features of this CPU.");
}
