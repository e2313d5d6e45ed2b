// Checking pairs of tensors, and choosing what the plan does with each.
#include "pairs.h"

#include <utility>
#include <vector>

namespace mtk {
namespace {

// The rows that the plan already has, by where they write: a tied weight is listed twice and averaged once.
// Teachers that overlap without starting together are not noticed.
class Written {
 public:
  explicit Written(size_t pairs) : mask_(table_size(pairs) - 1), slots_(mask_ + 1) {}

  // The row that already writes to where `row` does; if none does, `row` is from now on that one.
  const Row* add(const Row& row) {
    size_t slot = (row.dst >> 4) * 0x9e3779b97f4a7c15u >> 20 & mask_;
    while (slots_[slot].dst && slots_[slot].dst != row.dst) slot = (slot + 1) & mask_;
    if (slots_[slot].dst) return &slots_[slot];
    slots_[slot] = row;
    return nullptr;
  }

 private:
  static size_t table_size(size_t pairs) {
    size_t size = 16;
    while (size < 2 * pairs) size *= 2;
    return size;
  }
  size_t mask_;
  std::vector<Row> slots_;
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

Row row_of(const TensorView& teacher, const TensorView& student, bool average, const Argument& t) {
  const bool complex = teacher.is_complex() && student.is_complex();
  if (complex || (teacher.is_float() && student.is_float())) {
    return float_row(average ? kAverage : kConvert, teacher.address(), teacher.float_dtype(),
                     student.address(), student.float_dtype(), teacher.numel() * (complex ? 2 : 1));
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
  return copy_row(teacher.address(), student.address(), teacher.bytes());
}

}  // namespace

Pairs read_pairs(const char* op, const py::sequence& teacher, const py::sequence& student, Py_ssize_t copied,
                 const py::object& names) {
  Pairs pairs{py::tuple(teacher), py::tuple(student), {}, {}};
  const Py_ssize_t count = static_cast<Py_ssize_t>(pairs.teachers.size());
  if (static_cast<Py_ssize_t>(pairs.students.size()) != count) {
    refuse(Refusal::value, {op, "student"}, "have as many tensors as teacher (" + std::to_string(count) + ")",
           std::to_string(pairs.students.size()));
  }
  pairs.plan.rows.reserve(static_cast<size_t>(count));
  Written written(static_cast<size_t>(count));
  PyObject* known_names = names.is_none() ? nullptr : names.ptr();
  for (Py_ssize_t i = 0; i < count; ++i) {
    const Argument t{op, "teacher", i, known_names}, s{op, "student", i, known_names};
    const TensorView to = TensorView::of(PyTuple_GET_ITEM(pairs.teachers.ptr(), i), t);
    const TensorView from = TensorView::of(PyTuple_GET_ITEM(pairs.students.ptr(), i), s);
    check_pair(to, from, t, s);
    if (!pairs.first) pairs.first = to;
    if (!to.same_device(*pairs.first)) {
      refuse(Refusal::value, t, "be on the device of teacher[0] (" + pairs.first->attribute("device") + ")",
             to.attribute("device"));
    }
    if (to.numel() == 0) continue;
    const Row row = row_of(to, from, i < count - copied, t);
    if (row.dst == row.src) refuse(Refusal::value, t, "have memory of its own", "that of its student");
    const Row* const earlier = written.add(row);
    if (!earlier) {
      pairs.plan.add(row);
    } else if (earlier->src != row.src || earlier->count != row.count || earlier->code != row.code) {
      refuse(Refusal::value, t, "have memory of its own", "that of an earlier teacher in another pair");
    }
  }
  return pairs;
}

}  // namespace mtk
