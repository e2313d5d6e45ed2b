// The ops beside weight averages and losses as Python sees them: what the other teacher-student systems need.
#include "bindings.h"
#include "multi_tensor_dot.h"
#include "pairs.h"

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
  return py::make_tuple(py::bytes(reinterpret_cast<const char*>(chunks.words.data()),
                                  chunks.words.size() * sizeof(int64_t)),
                        new_sums(pairs, with_norms));
}

}  // namespace

void bind_targets(py::module_& m) {
  using namespace py::literals;
  m.def("multi_tensor_dot", &multi_tensor_dot, "first"_a, "second"_a, "with_norms"_a = false);
  m.def("multi_tensor_dot_rows", &dot_rows, "first"_a, "second"_a, "with_norms"_a, "target_rows"_a);
}

}  // namespace mtk
