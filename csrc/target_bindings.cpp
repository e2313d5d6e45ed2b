// The ops beside weight averages and losses as Python sees them: what the other teacher-student systems need.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings.h"
#include "logits.h"
#include "multi_tensor_dot.h"
#include "pairs.h"
#include "sharpen.h"
#include "temporal_ensemble.h"

namespace mtk {
namespace {

// ---- multi_tensor_dot

constexpr const char* kDot = "multi_tensor_dot";

py::tuple tensors_of(const py::object& list, const char* name) {
  if (!PySequence_Check(list.ptr()) || is_tensor(list.ptr()))
    refuse(Refusal::type, {kDot, name}, "be a sequence of tensors", Py_TYPE(list.ptr())->tp_name);
  return py::tuple(list);
}

// Zeros, where the kernel writes: one, or with norms three.
py::object new_sums(const Pairs& pairs, bool with_norms) {
  const py::module_ torch = py::module_::import("torch");
  py::tuple shape = with_norms ? py::make_tuple(3) : py::tuple();
  py::object device = pairs.first ? py::reinterpret_borrow<py::object>(pairs.first->object).attr("device")
                                  : py::object(py::str("cpu"));
  return torch.attr("zeros")(shape, py::arg("dtype") = torch.attr("float64"), py::arg("device") = device);
}

py::object multi_tensor_dot(const py::object& first, const py::object& second, bool with_norms) {
  const py::tuple a = tensors_of(first, "first"), b = tensors_of(second, "second");
  const Pairs pairs = read_factors(kDot, a, b);
  py::object sums = new_sums(pairs, with_norms);
  if (pairs.plan.words.empty()) return sums;
  MultiTensorDot args{};
  args.plan = &pairs.plan;
  args.sums = reinterpret_cast<double*>(TensorView::of(sums.ptr(), {kDot, "sums"}).address());
  args.with_norms = with_norms;
  launch({kDot, "first", 0}, *pairs.first, args, multi_tensor_dot_cpu, multi_tensor_dot_cuda);
  return sums;
}

// The checked, chunked table for Triton, and the tensor that its kernel writes to.
py::tuple dot_rows(const py::object& first, const py::object& second, bool with_norms, int64_t target_rows) {
  const py::tuple a = tensors_of(first, "first"), b = tensors_of(second, "second");
  const Pairs pairs = read_factors(kDot, a, b);
  const Plan chunks = pairs.plan.chunks(target_rows);
  return py::make_tuple(
      py::bytes(reinterpret_cast<const char*>(chunks.words.data()), chunks.words.size() * sizeof(int64_t)),
      new_sums(pairs, with_norms));
}

// ---- temporal_ensemble_

constexpr const char* kEnsemble = "temporal_ensemble_";

Correction read_correction(const py::object& correction) {
  if (PyUnicode_Check(correction.ptr())) {
    const auto word = py::cast<std::string>(correction);
    if (word == "bias") return Correction::bias;
    if (word == "renormalize") return Correction::renormalize;
    if (word == "none") return Correction::none;
  }
  refuse(Refusal::value, {kEnsemble, "correction"}, "be 'bias', 'renormalize' or 'none'",
         py::repr(correction));
}

// None where the kernel reads it from the device.
std::optional<int64_t> read_updates(const py::object& updates, const TensorView& student) {
  constexpr const char* kCounts = "be at least 0 and below 2^63";
  const Argument argument{kEnsemble, "updates"};
  int64_t value;
  if (is_tensor(updates.ptr())) {
    const TensorView view = TensorView::of(updates.ptr(), argument);
    if (!view.is_index())
      refuse(Refusal::type, argument, "be an int, or one int64 or int32 in a tensor",
             view.attribute("dtype"));
    if (view.numel() != 1) refuse(Refusal::value, argument, "hold one number", "shape " + view.shape_text());
    if (!view.on_cpu()) {
      if (view.same_device(student)) return std::nullopt;
      refuse(Refusal::value, argument,
             "be on the CPU or on the device of student (" + student.attribute("device") + ")",
             view.attribute("device"));
    }
    value = view.integer_at(0);
  } else {
    const auto number = py::reinterpret_steal<py::object>(
        PyIndex_Check(updates.ptr()) ? PyNumber_Index(updates.ptr()) : nullptr);
    if (!number) {
      PyErr_Clear();
      refuse(Refusal::type, argument, "be an int, or one int64 or int32 in a tensor",
             Py_TYPE(updates.ptr())->tp_name);
    }
    return read_int(argument, number, 0, INT64_MAX, kCounts);
  }
  if (value < 0) refuse(Refusal::value, argument, kCounts, std::to_string(value));
  return value;
}

// Each row once, and one that the ensemble has. On a GPU nobody looks: that would wait for it.
void check_index_values(const TensorView& index, int64_t samples) {
  const int64_t rows = index.shape[0];
  std::vector<std::pair<int64_t, int64_t>> seen(static_cast<size_t>(rows));  // sample, position
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t sample = index.integer_at(i * index.strides[0]);
    if (sample < 0 || sample >= samples) {
      refuse(Refusal::value, {kEnsemble, "index", i},
             "be a row of ensemble, from 0 to " + std::to_string(samples - 1), std::to_string(sample));
    }
    seen[static_cast<size_t>(i)] = {sample, i};
  }
  std::sort(seen.begin(), seen.end());
  const auto twice = std::adjacent_find(seen.begin(), seen.end(),
                                        [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice == seen.end()) return;
  refuse(Refusal::value, {kEnsemble, "index", (twice + 1)->second}, "be a row that is visited once",
         std::to_string(twice->first) + ", as index[" + std::to_string(twice->second) + "] is");
}

void check_matrix(const Argument& argument, const TensorView& view, const std::string& shape) {
  if (!view.is_float()) refuse(Refusal::type, argument, kFloatDtypes, view.attribute("dtype"));
  if (view.ndim != 2) refuse(Refusal::value, argument, "have shape " + shape, view.shape_text());
}

void check_beside_student(const Argument& argument, const TensorView& view, const TensorView& student) {
  if (view.same_device(student)) return;
  refuse(Refusal::value, argument, "be on the device of student (" + student.attribute("device") + ")",
         view.attribute("device"));
}

// The stretch of memory from a view's first element to past its last, empty where it has none.
std::pair<const char*, const char*> stretch_of(const TensorView& view) {
  const char *first = view.address(), *last = first;
  if (view.numel() == 0) return {first, first};
  for (int32_t i = 0; i < view.ndim; ++i) {
    const int64_t reach = (view.shape[i] - 1) * view.strides[i] * view.dtype.bits / 8;
    (reach < 0 ? first : last) += reach;
  }
  return {first, last + view.dtype.bits / 8};
}

// The ensemble is written while the student is still read.
void check_apart(const TensorView& ensemble, const TensorView& student) {
  const auto [first, last] = stretch_of(ensemble);
  const auto [other_first, other_last] = stretch_of(student);
  if (first < other_last && other_first < last && first < last && other_first < other_last)
    refuse(Refusal::value, {kEnsemble, "ensemble"}, "lie in memory apart from student's",
           "memory that overlaps it");
}

void check_shapes(const TensorView& ensemble, const TensorView& index, const TensorView& student) {
  const Argument z{kEnsemble, "ensemble"}, i{kEnsemble, "index"}, s{kEnsemble, "student"};
  check_matrix(s, student, "[rows, classes]");
  check_matrix(z, ensemble, "[samples, classes]");
  if (student.shape[1] == 0)
    refuse(Refusal::value, s, "have at least one class", "shape " + student.shape_text());
  if (ensemble.shape[1] != student.shape[1]) {
    refuse(Refusal::value, z, "have as many classes as student (" + std::to_string(student.shape[1]) + ")",
           std::to_string(ensemble.shape[1]));
  }
  if ((ensemble.shape[1] > 1 && ensemble.strides[1] != 1) ||
      (ensemble.shape[0] > 1 && ensemble.strides[0] < ensemble.shape[1])) {
    refuse(Refusal::value, z, "have rows that lie one after the other, each without gaps",
           "strides " + ensemble.stride_text());
  }
  if (!index.is_index()) refuse(Refusal::type, i, "be int64 or int32", index.attribute("dtype"));
  if (index.ndim != 1 || index.shape[0] != student.shape[0]) {
    refuse(Refusal::value, i,
           "have shape [" + std::to_string(student.shape[0]) + "], one for each row of student",
           index.shape_text());
  }
  check_beside_student(z, ensemble, student);
  check_beside_student(i, index, student);
  check_apart(ensemble, student);
}

Matrix matrix_of(const TensorView& view) {
  return {view.address(), view.float_dtype(), view.strides[0], view.shape[1] == 1 ? 1 : view.strides[1]};
}

// Checks everything, and fills all but the outputs.
TemporalEnsemble read_ensemble(const TensorView& ensemble, const TensorView& index, const TensorView& student,
                               const py::object& alpha, const py::object& updates,
                               const py::object& correction, const py::object& reduction) {
  check_shapes(ensemble, index, student);
  TemporalEnsemble args{};
  args.alpha = read_float({kEnsemble, "alpha"}, alpha, kBelowOne);
  const Correction kind = read_correction(correction);
  const Reduction over_rows = read_reduction(kEnsemble, reduction);
  args.rows = student.shape[0], args.classes = student.shape[1];
  args.renormalize = kind == Correction::renormalize;
  args.has_target = true, args.divisor = 1;
  if (updates.is_none()) {
    if (kind == Correction::bias)
      refuse(Refusal::value, {kEnsemble, "updates"}, "be given where correction is 'bias'", "None");
  } else if (const std::optional<int64_t> count = read_updates(updates, student)) {
    args.has_target = *count > 0;
    if (kind == Correction::bias && *count > 0)
      args.divisor = 1 - std::pow(args.alpha, static_cast<double>(*count));
  }
  if (index.on_cpu()) check_index_values(index, ensemble.shape[0]);
  args.ensemble = matrix_of(ensemble), args.student = matrix_of(student);
  args.index = index.address(), args.wide_index = index.dtype.bits == 64,
  args.index_stride = index.strides[0];
  args.reduced = over_rows != Reduction::none;
  args.row_scale = over_rows == Reduction::mean && args.rows > 0 ? 1.0 / static_cast<double>(args.rows) : 1.0;
  return args;
}

void check_temporal_ensemble(const py::object& ensemble, const py::object& index, const py::object& student,
                             const py::object& alpha, const py::object& updates, const py::object& correction,
                             const py::object& reduction) {
  read_ensemble(TensorView::of(ensemble.ptr(), {kEnsemble, "ensemble"}),
                TensorView::of(index.ptr(), {kEnsemble, "index"}),
                TensorView::of(student.ptr(), {kEnsemble, "student"}), alpha, updates, correction, reduction);
}

py::tuple temporal_ensemble_(const py::object& ensemble, const py::object& index, const py::object& student,
                             const py::object& alpha, const py::object& updates, const py::object& correction,
                             const py::object& reduction, bool with_gradient) {
  const TensorView z = TensorView::of(ensemble.ptr(), {kEnsemble, "ensemble"}),
                   i = TensorView::of(index.ptr(), {kEnsemble, "index"}),
                   s = TensorView::of(student.ptr(), {kEnsemble, "student"});
  TemporalEnsemble args = read_ensemble(z, i, s, alpha, updates, correction, reduction);
  const py::module_ torch = py::module_::import("torch");
  const py::tuple shape = args.reduced ? py::tuple() : py::make_tuple(args.rows);
  const py::object loss =
      student.attr("new_empty")(shape, py::arg("dtype") = torch.attr(args.doubles() ? "float64" : "float32"));
  args.loss = TensorView::of(loss.ptr(), {kEnsemble, "loss"}).address();
  py::object dstudent = py::none();
  if (with_gradient) {  // fp32 for fp16 logits: fp16 would lose what a loss scale brings back later
    dstudent = s.float_dtype() == Dtype::f16
                   ? torch.attr("empty_like")(student, py::arg("dtype") = torch.attr("float32"))
                   : torch.attr("empty_like")(student);
    args.dstudent = matrix_of(TensorView::of(dstudent.ptr(), {kEnsemble, "dstudent"}));
  }
  launch({kEnsemble, "student"}, s, args, temporal_ensemble_cpu, temporal_ensemble_cuda);
  return py::make_tuple(loss, dstudent);
}

// ---- sharpen

constexpr const char* kSharpen = "sharpen";

// Checks everything; gives the dim of the classes, counted from the front.
int64_t check_sharpen(const TensorView& probs, const py::object& temperature, const py::object& dim,
                      Sharpen& args) {
  const Argument argument{kSharpen, "probs"};
  if (!probs.is_float()) refuse(Refusal::type, argument, kFloatDtypes, probs.attribute("dtype"));
  if (probs.ndim == 0) refuse(Refusal::value, argument, "have a dim of classes", "a 0-d tensor");
  const int64_t along = read_dim(kSharpen, dim, "probs", probs);
  const Number number = read_scalar({kSharpen, "temperature"}, temperature, kPositive, "probs", probs);
  args.temperature = number.data ? 1 : number.value;  // a CPU kernel reads none from a device
  return along;
}

py::object sharpen(const py::object& probs, const py::object& temperature, const py::object& dim) {
  const TensorView p = TensorView::of(probs.ptr(), {kSharpen, "probs"});
  Sharpen args{};
  const int64_t classes_dim = check_sharpen(p, temperature, dim, args);
  const py::object sharpened = py::module_::import("torch").attr("empty_like")(probs);
  if (p.numel() == 0) return sharpened;
  const TensorView to = TensorView::of(sharpened.ptr(), {kSharpen, "sharpened"});
  args.probs = p.address(), args.sharpened = to.address(), args.dtype = p.float_dtype();
  args.classes = p.shape[classes_dim], args.rows = p.numel() / args.classes;
  args.stride = args.classes == 1 ? 1 : p.strides[classes_dim];
  args.sharpened_stride = args.classes == 1 ? 1 : to.strides[classes_dim];
  for (int64_t i = 0; i < p.ndim; ++i) {
    if (i == classes_dim || p.shape[i] == 1) continue;
    args.sizes[args.dims] = p.shape[i];
    args.strides[args.dims] = p.strides[i], args.sharpened_strides[args.dims++] = to.strides[i];
  }
  launch({kSharpen, "probs"}, p, args, sharpen_cpu, sharpen_cuda);
  return sharpened;
}

}  // namespace

void bind_targets(py::module_& m) {
  using namespace py::literals;
  m.def("multi_tensor_dot", &multi_tensor_dot, "first"_a, "second"_a, "with_norms"_a = false);
  m.def("multi_tensor_dot_rows", &dot_rows, "first"_a, "second"_a, "with_norms"_a, "target_rows"_a);
  m.def("temporal_ensemble_", &temporal_ensemble_, "ensemble"_a, "index"_a, "student"_a, "alpha"_a = 0.6,
        "updates"_a = py::none(), "correction"_a = "bias", "reduction"_a = "mean", "with_gradient"_a = false);
  m.def("check_temporal_ensemble", &check_temporal_ensemble, "ensemble"_a, "index"_a, "student"_a, "alpha"_a,
        "updates"_a, "correction"_a, "reduction"_a);
  m.def("sharpen", &sharpen, "probs"_a, "temperature"_a, "dim"_a = -1);
  m.def(
      "check_sharpen",
      [](const py::object& probs, const py::object& temperature, const py::object& dim) {
        Sharpen args{};
        check_sharpen(TensorView::of(probs.ptr(), {kSharpen, "probs"}), temperature, dim, args);
      },
      "probs"_a, "temperature"_a, "dim"_a);
}

}  // namespace mtk
