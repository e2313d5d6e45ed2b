// Lists of tensors, checked pair by pair and written as a plan: the way in of every multi-tensor op.
#pragma once
#include <optional>
#include <vector>

#include "plan.h"
#include "tensor.h"

namespace mtk {

// What a caller gives: of n pairs, `averages` teachers each, and one student.
struct PairLists {
  const char* op;
  py::tuple teachers;  // [averages * n]: all of the first average, then all of the second ...
  py::tuple
      students;       // [n]; both keep the tensors alive until the kernel is done, which runs without the GIL
  py::tuple lows;     // [averages * n] low-order parts, or None in their places; or empty: none
  Py_ssize_t copied;  // how many pairs at the end are copied; of the others integers and bools are, too
  py::object names;   // list of n str for the messages, or None
  bool swap = false;  // both sides are written
  int averages = 1;

  PyObject* known_names() const { return names.is_none() ? nullptr : names.ptr(); }
};

struct Pairs {
  Plan plan;
  std::optional<TensorView> first;  // the device of all; none where the lists are empty
};

// Raises what is wrong with the lists as a refusal that names the tensor.
Pairs read_pairs(const PairLists& lists);

// Students alone, as a plan whose targets are null.
Pairs read_students(const char* op, const py::tuple& students);

// Pairs that are only read, as averages: `first` the targets, `second` the sources. A pair with None on
// either side is passed over.
Pairs read_factors(const char* op, const py::tuple& first, const py::tuple& second);

}  // namespace mtk
