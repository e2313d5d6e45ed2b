// Two lists of tensors, checked pair by pair and written as a plan: the way in of every multi-tensor op.
#pragma once
#include <optional>

#include "plan.h"
#include "tensor.h"

namespace mtk {

struct Pairs {
  py::tuple teachers, students;  // keep the tensors alive until the kernel is done: it runs without the GIL
  Plan plan;
  std::optional<TensorView> first;  // the device of all; none where the lists are empty
};

// The last `copied` pairs are copied; of the others, floats are averaged, integers and bools copied.
// names: list of str for the messages, or None.
Pairs read_pairs(const char* op, const py::sequence& teacher, const py::sequence& student, Py_ssize_t copied,
                 const py::object& names);

}  // namespace mtk
