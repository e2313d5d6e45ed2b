// Slots: the entries of dicts, compared by identity. A replaced, added or removed parameter would be averaged
// silently no more.
#include <unordered_set>
#include <vector>

#include "bindings.h"

namespace mtk {
namespace {

class Slots {
 public:
  explicit Slots(const py::sequence& holders) {
    std::unordered_set<const PyObject*> seen;
    for (const py::handle item : holders) {
      if (!seen.insert(item.ptr()).second) continue;  // parts that both modules have
      if (!PyDict_Check(item.ptr())) throw py::type_error("Slots: holders must be dicts");
      const auto dict = py::reinterpret_borrow<py::dict>(item);
      holders_.push_back({dict, PyDict_GET_SIZE(dict.ptr())});
      for (const auto& [key, value] : dict) {
        slots_.push_back(
            {dict.ptr(), py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value)});
      }
    }
  }

  bool same() const {
    for (const Holder& holder : holders_) {
      if (PyDict_GET_SIZE(holder.dict.ptr()) != holder.size) return false;
    }
    for (const Slot& slot : slots_) {
      PyObject* const now = PyDict_GetItemWithError(slot.dict, slot.key.ptr());
      if (!now && PyErr_Occurred()) throw py::error_already_set();
      if (now != slot.value.ptr()) return false;
    }
    return true;
  }

 private:
  struct Holder {
    py::dict dict;
    Py_ssize_t size;
  };
  struct Slot {
    PyObject* dict;         // one of the holders'
    py::object key, value;  // None where a module holds no tensor yet
  };
  std::vector<Holder> holders_;
  std::vector<Slot> slots_;
};

}  // namespace

void bind_slots(py::module_& m) {
  using namespace py::literals;
  py::class_<Slots>(m, "Slots", "Dicts, and the entries that they had.")
      .def(py::init<const py::sequence&>(), "holders"_a)
      .def("same", &Slots::same, "Whether they have these entries still, and no others.");
}

}  // namespace mtk
