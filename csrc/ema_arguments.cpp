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

// kind, a, b, c, d, as mtkernels/schedules.py gives them.
Decay read_schedule(const py::object& schedule, const Argument& argument) {
  double numbers[5];
  const py::object kernel = py::getattr(schedule, "kernel", py::none());
  bool good = py::isinstance<py::tuple>(kernel) && py::len(kernel) == 5;
  for (size_t i = 0; good && i < 5; ++i) {
    numbers[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(kernel.ptr(), static_cast<Py_ssize_t>(i)));
    good = !PyErr_Occurred();
  }
  PyErr_Clear();
  if (!good || !(numbers[0] >= 0 && numbers[0] < static_cast<double>(DecayKind::live))) {
    refuse(Refusal::type, argument, "be a number, a torch.Tensor or a schedule",
           Py_TYPE(schedule.ptr())->tp_name);
  }
  return {static_cast<DecayKind>(static_cast<int>(numbers[0])),
          Dtype::f64,
          numbers[1],
          numbers[2],
          numbers[3],
          numbers[4],
          nullptr};
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
  return read_schedule(decay, argument);
}

// An int from `least` to 2^63 - 1, or what stands for one (numpy's).
uint64_t read_integer(const py::object& number, const char* name, uint64_t least,
                      const char* kind = "be an int") {
  const Argument argument{kOp, name};
  const auto index =
      py::reinterpret_steal<py::object>(PyIndex_Check(number.ptr()) ? PyNumber_Index(number.ptr()) : nullptr);
  if (!index) {
    PyErr_Clear();
    refuse(Refusal::type, argument, kind, Py_TYPE(number.ptr())->tp_name);
  }
  const uint64_t value = PyLong_AsUnsignedLongLong(index.ptr());
  const bool outside = PyErr_Occurred() != nullptr;
  PyErr_Clear();
  if (outside || value < least || value >> 63) {
    refuse(Refusal::value, argument, "be at least " + std::to_string(least) + " and below 2^63",
           py::str(index));
  }
  return value;
}

bool read_flag(const py::object& options, const char* name) {
  const py::object flag = option(options, name);
  if (!PyBool_Check(flag.ptr()))
    refuse(Refusal::type, {kOp, name}, "be a bool", Py_TYPE(flag.ptr())->tp_name);
  return flag.ptr() == Py_True;
}

// A tensor is read by the kernel, a number now.
void read_step(const py::object& step, const TensorView& weights, EmaUpdate& args) {
  if (is_tensor(step.ptr())) {
    const Numbers one{kDLInt, 64, "int64", 1, "teacher"};
    args.step = reinterpret_cast<int64_t*>(read_numbers(step, {kOp, "step"}, one, weights).address());
    return;
  }
  const uint64_t number = read_integer(step, "step", 1, "be an int or a 0-d int64 tensor");
  if (args.advance || args.every != 1 || args.start != 0)
    refuse(Refusal::value, {kOp, "step"}, "be a tensor where it advances, or every or start is given",
           py::str(step));
  args.random.step = number;
  for (Decay& decay : args.decays) {
    if (decay.kind == DecayKind::live) continue;
    decay.a = decay.at(static_cast<double>(number));
    decay.kind = DecayKind::constant;
  }
}

void read_options(const py::object& options, const TensorView& weights, int averages, EmaUpdate& args) {
  const py::object step = option(options, "step"), found_inf = option(options, "found_inf"),
                   drift = option(options, "drift");
  args.stochastic = read_flag(options, "stochastic");
  args.advance = read_flag(options, "advance");
  args.random.seed = read_integer(option(options, "seed"), "seed", 0);
  args.every = static_cast<int64_t>(read_integer(option(options, "every"), "every", 1));
  args.start = static_cast<int64_t>(read_integer(option(options, "start"), "start", 0));
  const bool wanted = args.stochastic || args.advance || args.every != 1 || args.start != 0;
  if (step.is_none() && wanted)
    refuse(Refusal::value, {kOp, "step"},
           args.stochastic ? "be given where rounding is 'stochastic'"
                           : "be a tensor where it advances, or every or start is given",
           "None");
  if (!step.is_none()) read_step(step, weights, args);
  if (!found_inf.is_none()) {
    const Numbers flag{kDLFloat, 32, "float32", 1, "teacher"};
    args.found_inf =
        reinterpret_cast<const float*>(read_numbers(found_inf, {kOp, "found_inf"}, flag, weights).address());
  }
  if (!drift.is_none()) {
    const Numbers norms{kDLFloat, 64, "float64", averages, "teacher"};
    args.drift = reinterpret_cast<double*>(read_numbers(drift, {kOp, "drift"}, norms, weights).address());
  }
}

}  // namespace

py::object option(const py::object& options, const char* name) {
  if (!py::hasattr(options, name))
    refuse(Refusal::type, {kOp, "options"}, "be EmaOptions", Py_TYPE(options.ptr())->tp_name);
  return options.attr(name);
}

double decay_at(const py::object& schedule, const py::object& step) {
  const double t = PyFloat_AsDouble(step.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    refuse(Refusal::type, {"schedule", "step"}, "be a number", Py_TYPE(step.ptr())->tp_name);
  }
  return t > 0 ? read_schedule(schedule, {"schedule", "kernel"}).at(t) : 0.0;
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
  const bool has_step = !options.is_none() && !option(options, "step").is_none();
  const bool list = py::isinstance<py::tuple>(decay) || py::isinstance<py::list>(decay);
  for (int k = 0; k < averages; ++k) {
    const py::object one = list ? py::object(decay[py::int_(k)]) : decay;
    args.decays[k] = read_decay(one, weights, has_step, decay_argument(list ? k : -1));
  }
  args.every = 1;
  if (!options.is_none()) read_options(options, weights, averages, args);
}

}  // namespace mtk
