// Slots: three references each, compared by identity. A replaced parameter would be averaged silently no
// more.
#include "slots.h"

#include <vector>

namespace mtk {
namespace {

namespace py = pybind11;

class Slots {
 public:
  // slots: (dict, key, tensor) of each
  explicit Slots(const py::sequence& slots) {
    slots_.reserve(slots.size());
    for (const py::handle item : slots) {
      const auto slot = py::cast<py::tuple>(item);
      slots_.push_back({py::cast<py::dict>(slot[0]), slot[1], slot[2]});
    }
  }

  bool same() const {
    for (const Slot& slot : slots_) {
      PyObject* const now = PyDict_GetItemWithError(slot.holder.ptr(), slot.key.ptr());
      if (!now && PyErr_Occurred()) throw py::error_already_set();
      if (now != slot.tensor.ptr()) return false;
    }
    return true;
  }

 private:
  struct Slot {
    py::dict holder;
    py::object key, tensor;
  };
  std::vector<Slot> slots_;
};

}  // namespace

void bind_slots(py::module_& m) {
  using namespace py::literals;
  py::class_<Slots>(m, "Slots", "Places in dicts, and the tensors that were there.")
      .def(py::init<const py::sequence&>(), "slots"_a)
      .def("same", &Slots::same, "Whether they still are.");
}

}  // namespace mtk
