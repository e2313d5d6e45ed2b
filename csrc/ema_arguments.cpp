// Reading and checking decays and options.
#include "ema_arguments.h"

#include <string>

namespace mtk {
namespace {

constexpr const char* kOp = "ema_update";

Argument decay_argument(Py_ssize_t index) { return {kOp, "decay", index}; }

void check_decay(double decay, const Argument& argument) {
  if (!(decay >= 0 && decay <= 1))
    refuse(Refusal::value, argument, "be between 0 and 1", py::str(py::float_(decay)));
}

double read_number(const py::object& number, const Argument& argument) {
  const double value = PyFloat_AsDouble(number.ptr());
  if (value == -1 && PyErr_Occurred()) {
    const bool overflow = PyErr_ExceptionMatches(PyExc_OverflowError);
    PyErr_Clear();
    if (overflow)
      refuse(Refusal::value, argument, "be between 0 and 1", "a larger number than a float holds");
    refuse(Refusal::type, argument, "be a number, a torch.Tensor or a schedule",
           Py_TYPE(number.ptr())->tp_name);
  }
  return value;
}

// In host memory: read now. On the weights' device: read by the kernel.
Decay read_tensor(const py::object& decay, const TensorView& weights, const Argument& argument) {
  Decay result{};
  const TensorView view = TensorView::of(decay.ptr(), argument);
  if (view.numel() != 1)
    refuse(Refusal::value, argument, "be a number or hold one", "shape " + view.shape_text());
  if (!view.is_float() || view.dtype.bits < 32)
    refuse(Refusal::type, argument, "be float32 or float64", view.attribute("dtype"));
  result.kind = DecayKind::live;
  result.dtype = view.float_dtype();
  result.data = view.address();
  if (view.on_cpu()) {
    result.a = result.at(1);
    result.kind = DecayKind::constant;
    check_decay(result.a, argument);
  } else if (!view.same_device(weights)) {
    refuse(Refusal::value, argument,
           "be on the CPU or on the device of teacher (" + weights.attribute("device") + ")",
           view.attribute("device"));
  }
  return result;
}

Decay read_schedule(const py::object& schedule) {
  Decay result{};
  const auto numbers = py::cast<py::tuple>(schedule.attr("kernel"));  // kind, a, b, c, d
  result.kind = static_cast<DecayKind>(py::cast<int>(numbers[0]));
  result.a = py::cast<double>(numbers[1]);
  result.b = py::cast<double>(numbers[2]);
  result.c = py::cast<double>(numbers[3]);
  result.d = py::cast<double>(numbers[4]);
  return result;
}

Decay read_decay(const py::object& decay, const TensorView& weights, bool has_step,
                 const Argument& argument) {
  if (is_tensor(decay.ptr())) return read_tensor(decay, weights, argument);
  Decay result{};
  if (PyFloat_Check(decay.ptr()) || !py::hasattr(decay, "kernel")) {
    result.a = read_number(decay, argument);
    check_decay(result.a, argument);
    return result;
  }
  if (!has_step) refuse(Refusal::value, {kOp, "step"}, "be given where decay is a schedule", "None");
  return read_schedule(decay);
}

TensorView read_option(const py::object& tensor, const char* name, const TensorView& weights,
                       const char* dtype, int64_t numel) {
  const Argument argument{kOp, name};
  const TensorView view = TensorView::of(tensor.ptr(), argument);
  const std::string is =
      view.attribute("dtype") + " " + view.shape_text() + " on " + view.attribute("device");
  if (view.attribute("dtype") != std::string("torch.") + dtype || view.numel() != numel || !view.dense() ||
      !view.same_device(weights)) {
    refuse(Refusal::value, argument,
           "be " + std::to_string(numel) + " " + dtype + " on the device of teacher (" +
               weights.attribute("device") + ")",
           is);
  }
  return view;
}

int64_t read_count(const py::object& options, const char* name, int64_t least) {
  const int64_t value = py::cast<int64_t>(options.attr(name));
  if (value < least)
    refuse(Refusal::value, {kOp, name}, "be at least " + std::to_string(least), std::to_string(value));
  return value;
}

// A tensor is read by the kernel, a number now.
void read_step(const py::object& step, const TensorView& weights, EmaUpdate& args) {
  if (is_tensor(step.ptr())) {
    args.step = reinterpret_cast<int64_t*>(read_option(step, "step", weights, "int64", 1).address());
    return;
  }
  if (!PyLong_Check(step.ptr()))
    refuse(Refusal::type, {kOp, "step"}, "be an int or a 0-d int64 tensor", Py_TYPE(step.ptr())->tp_name);
  const int64_t number = PyLong_AsLongLong(step.ptr());
  if (PyErr_Occurred()) PyErr_Clear();
  if (number < 1) refuse(Refusal::value, {kOp, "step"}, "be at least 1", std::string(py::str(step)));
  args.random.step = static_cast<uint64_t>(number);
  for (Decay& decay : args.decays) {
    if (decay.kind == DecayKind::live) continue;
    decay.a = decay.at(static_cast<double>(number));
    decay.kind = DecayKind::constant;
  }
}

void read_options(const py::object& options, const TensorView& weights, int averages, EmaUpdate& args) {
  const py::object step = options.attr("step"), found_inf = options.attr("found_inf"),
                   drift = options.attr("drift");
  args.stochastic = py::cast<bool>(options.attr("stochastic"));
  args.random.seed = py::cast<uint64_t>(options.attr("seed"));
  args.advance = py::cast<bool>(options.attr("advance"));
  args.every = read_count(options, "every", 1);
  args.start = read_count(options, "start", 0);
  if (args.stochastic && step.is_none())
    refuse(Refusal::value, {kOp, "step"}, "be given where rounding is 'stochastic'", "None");
  if (!step.is_none()) read_step(step, weights, args);
  if (args.advance && !args.step)
    refuse(Refusal::value, {kOp, "step"}, "be a tensor where it advances", std::string(py::str(step)));
  if (!found_inf.is_none()) {
    args.found_inf =
        reinterpret_cast<const float*>(read_option(found_inf, "found_inf", weights, "float32", 1).address());
  }
  if (!drift.is_none())
    args.drift =
        reinterpret_cast<double*>(read_option(drift, "drift", weights, "float64", averages).address());
}

}  // namespace

double decay_at(const py::object& schedule, double step) {
  return step > 0 ? read_schedule(schedule).at(step) : 0.0;
}

int averages_of(const py::object& decay) {
  if (!py::isinstance<py::tuple>(decay) && !py::isinstance<py::list>(decay)) return 1;
  const size_t averages = py::len(decay);
  if (averages < 1 || averages > static_cast<size_t>(kMaxAverages)) {
    refuse(Refusal::value, {kOp, "decay"}, "be one, or a list of 1 to " + std::to_string(kMaxAverages),
           std::to_string(averages));
  }
  return static_cast<int>(averages);
}

void read_ema_arguments(const py::object& decay, const py::object& options, const TensorView& weights,
                        EmaUpdate& args) {
  const int averages = averages_of(decay);
  const bool has_step = !options.is_none() && !options.attr("step").is_none();
  const bool list = py::isinstance<py::tuple>(decay) || py::isinstance<py::list>(decay);
  for (int k = 0; k < averages; ++k) {
    const py::object one = list ? py::object(decay[py::int_(k)]) : decay;
    args.decays[k] = read_decay(one, weights, has_step, decay_argument(list ? k : -1));
  }
  args.every = 1;
  if (!options.is_none()) read_options(options, weights, averages, args);
}

}  // namespace mtk
