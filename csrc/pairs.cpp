// Checking pairs of tensors, and choosing what the plan does with each.
#include "pairs.h"

#include <utility>
#include <vector>

namespace mtk {
namespace {

// The pairs that the plan already writes, by address: tied weights are listed once, overlapping teachers
// refused.
class Written {
 public:
  explicit Written(size_t pairs) : mask_(table_size(pairs) - 1), slots_(mask_ + 1, {0, 0}) {}

  // The source that `dst` was already written from, or 0.
  uint64_t add(uint64_t dst, uint64_t src) {
    size_t slot = (dst >> 4) * 0x9e3779b97f4a7c15u >> 20 & mask_;
    while (slots_[slot].first && slots_[slot].first != dst) slot = (slot + 1) & mask_;
    if (slots_[slot].first) return slots_[slot].second;
    slots_[slot] = {dst, src};
    return 0;
  }

 private:
  static size_t table_size(size_t pairs) {
    size_t size = 16;
    while (size < 2 * pairs) size *= 2;
    return size;
  }
  size_t mask_;
  std::vector<std::pair<uint64_t, uint64_t>> slots_;
};

void check_pair(const TensorView& teacher, const TensorView& student, const Argument& t, const Argument& s) {
  if (!student.same_shape(teacher)) {
    refuse(Refusal::value, t, "have the shape of its student " + student.shape_text(), teacher.shape_text());
  }
  if (!student.same_device(teacher)) {
    refuse(Refusal::value, s, "be on the device of its teacher (" + teacher.attribute("device") + ")",
           student.attribute("device"));
  }
  if (teacher.numel() == 0) return;
  if (!teacher.dense())
    refuse(Refusal::value, t, "fill its memory without gaps or overlaps", "strides " + teacher.stride_text());
  if (!student.same_strides(teacher)) {
    refuse(Refusal::value, s, "have the memory format of its teacher, strides " + teacher.stride_text(),
           student.stride_text());
  }
}

void add_pair(Plan& plan, const TensorView& teacher, const TensorView& student, bool average,
              const Argument& t) {
  const bool complex = teacher.is_complex() && student.is_complex();
  if (complex || (teacher.is_float() && student.is_float())) {
    plan.add_float(average ? kAverage : kConvert, teacher.address(), teacher.float_dtype(), student.address(),
                   student.float_dtype(), teacher.numel() * (complex ? 2 : 1));
    return;
  }
  if (!teacher.same_dtype(student)) {
    refuse(Refusal::type, t,
           "have the dtype of its student (" + student.attribute("dtype") + ") or a floating one like it",
           teacher.attribute("dtype"));
  }
  if (teacher.dtype.code > kDLUInt && teacher.dtype.code != kDLBool) {
    refuse(Refusal::not_implemented, t, std::string(kFloatDtypes) + ", complex, integer or bool",
           teacher.attribute("dtype"));
  }
  plan.add_copy(teacher.address(), student.address(), teacher.bytes());
}

}  // namespace

Pairs read_pairs(const char* op, const py::sequence& teacher, const py::sequence& student, Py_ssize_t copied,
                 const py::object& names) {
  const py::list teachers(teacher), students(student);
  const Py_ssize_t count = static_cast<Py_ssize_t>(teachers.size());
  if (static_cast<Py_ssize_t>(students.size()) != count) {
    refuse(Refusal::value, {op, "student"}, "have as many tensors as teacher (" + std::to_string(count) + ")",
           std::to_string(students.size()));
  }
  Pairs pairs;
  pairs.plan.rows.reserve(static_cast<size_t>(count));
  Written written(static_cast<size_t>(count));
  PyObject* known_names = names.is_none() ? nullptr : names.ptr();
  for (Py_ssize_t i = 0; i < count; ++i) {
    const Argument t{op, "teacher", i, known_names}, s{op, "student", i, known_names};
    const TensorView to = TensorView::of(PyList_GET_ITEM(teachers.ptr(), i), t);
    const TensorView from = TensorView::of(PyList_GET_ITEM(students.ptr(), i), s);
    check_pair(to, from, t, s);
    if (!pairs.first) pairs.first = to;
    if (!to.same_device(*pairs.first)) {
      refuse(Refusal::value, t, "be on the device of teacher[0] (" + pairs.first->attribute("device") + ")",
             to.attribute("device"));
    }
    if (to.numel() == 0) continue;
    const uint64_t dst = reinterpret_cast<uint64_t>(to.address()),
                   src = reinterpret_cast<uint64_t>(from.address());
    if (dst == src) refuse(Refusal::value, t, "have memory of its own", "that of its student");
    const uint64_t earlier = written.add(dst, src);
    if (earlier == src) continue;
    if (earlier)
      refuse(Refusal::value, t, "have memory of its own", "that of an earlier teacher with another student");
    add_pair(pairs.plan, to, from, i < count - copied, t);
  }
  return pairs;
}

}  // namespace mtk
