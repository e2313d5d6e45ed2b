// Checking pairs of tensors, and choosing what the plan does with each.
#include "pairs.h"

#include <algorithm>

#include "overlap.h"

namespace mtk {
namespace {

// One pair: the student and its teachers, one for each average, with their low-order parts.
struct Pair {
  TensorView student, teachers[kMaxAverages], lows[kMaxAverages];
  bool has_low[kMaxAverages];
  Py_ssize_t index;
};

Argument argument(const PairLists& lists, const char* name, Py_ssize_t index, int average = 0) {
  const bool outer = lists.averages > 1 && name[0] != 's';
  return {lists.op, name, index, lists.known_names(), outer ? average : -1};
}

void check_pair(const PairLists& lists, const Pair& pair, int k) {
  const TensorView &teacher = pair.teachers[k], &student = pair.student;
  if (!student.same_shape(teacher)) {
    refuse(Refusal::value, argument(lists, "teacher", pair.index, k),
           "have the shape of its student " + student.shape_text(), teacher.shape_text());
  }
  if (!student.same_device(teacher)) {
    refuse(Refusal::value, argument(lists, "student", pair.index),
           "be on the device of its teacher (" + teacher.attribute("device") + ")",
           student.attribute("device"));
  }
  if (teacher.numel() == 0) return;
  if (!teacher.dense() && !teacher.injective()) {
    refuse(Refusal::value, argument(lists, "teacher", pair.index, k), "fill its memory without overlaps",
           "strides " + teacher.stride_text());
  }
  if (!student.same_strides(teacher)) {
    refuse(Refusal::value, argument(lists, "student", pair.index),
           "have the memory format of its teacher, strides " + teacher.stride_text(), student.stride_text());
  }
  if (k > 0 && !teacher.same_dtype(pair.teachers[0])) {
    refuse(Refusal::type, argument(lists, "teacher", pair.index, k),
           "have the dtype of the first average's (" + pair.teachers[0].attribute("dtype") + ")",
           teacher.attribute("dtype"));
  }
}

void check_low(const PairLists& lists, const Pair& pair, int k) {
  const TensorView &low = pair.lows[k], &teacher = pair.teachers[k];
  const Argument name = argument(lists, "low", pair.index, k);
  if (pair.index >= static_cast<Py_ssize_t>(lists.students.size()) - lists.copied)
    refuse(Refusal::value, name, "be None beside a teacher that is copied", "a tensor");
  if (!teacher.is_float() || teacher.dtype.bits != 16) {
    refuse(Refusal::type, name, "be None beside a teacher that is neither bfloat16 nor float16",
           "a low-order part of " + teacher.attribute("dtype"));
  }
  if (low.dtype.code != kDLInt || low.dtype.bits != 16)
    refuse(Refusal::type, name, "be int16", low.attribute("dtype"));
  if (!low.same_shape(teacher) || !low.same_strides(teacher) || !low.same_device(teacher)) {
    refuse(Refusal::value, name,
           "have the shape, memory format and device of its teacher (" + teacher.shape_text() + ", strides " +
               teacher.stride_text() + ", " + teacher.attribute("device") + ")",
           low.shape_text() + ", strides " + low.stride_text() + ", " + low.attribute("device"));
  }
}

// Where the runs of a tensor with gaps start, in elements: a run is what the dims that lie together make. All
// of a pair's tensors have the same strides.
struct Runs {
  std::vector<int64_t> starts{0};
  int64_t length;  // elements

  Runs(const TensorView& view, const Argument& argument) : length(1) {
    std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
    for (int32_t i = 0; i < view.ndim; ++i) {
      if (view.shape[i] != 1) dims.emplace_back(view.strides[i], view.shape[i]);
    }
    std::sort(dims.begin(), dims.end());
    for (const auto& [stride, size] : dims) {
      if (stride == length && starts.size() == 1) {
        length *= size;
        continue;
      }
      if (length == 1) {
        refuse(Refusal::value, argument, "have a dim of stride 1", "strides " + view.stride_text());
      }
      const size_t inner = starts.size();
      for (int64_t i = 1; i < size; ++i) {
        for (size_t k = 0; k < inner; ++k) starts.push_back(starts[k] + i * stride);
      }
    }
  }
};

// What one element of the pair is in a row: the code, and the count (a complex one counts as two, of a copy
// the bytes count).
Row row_of(const PairLists& lists, const Pair& pair, bool average) {
  const TensorView &teacher = pair.teachers[0], &student = pair.student;
  const bool complex = teacher.is_complex() && student.is_complex();
  const uint64_t src = reinterpret_cast<uint64_t>(student.address());
  if (!lists.swap && (complex || (teacher.is_float() && student.is_float()))) {
    const Dtype dst_dtype = teacher.float_dtype(), src_dtype = student.float_dtype();
    if (average || dst_dtype != src_dtype) {
      return {src, complex ? 2 : 1, row_code(average ? kAverage : kConvert, dst_dtype, src_dtype), 0};
    }
  }
  if (!teacher.same_dtype(student)) {
    refuse(Refusal::type, argument(lists, "teacher", pair.index),
           "have the dtype of its student (" + student.attribute("dtype") + ")" +
               (lists.swap ? "" : " or a floating one like it"),
           teacher.attribute("dtype"));
  }
  if (teacher.dtype.code > kDLUInt && teacher.dtype.code != kDLBool && !teacher.is_float() && !complex) {
    refuse(Refusal::not_implemented, argument(lists, "teacher", pair.index),
           std::string(kFloatDtypes) + ", complex, integer or bool", teacher.attribute("dtype"));
  }
  return {src, teacher.dtype.bits / 8 * teacher.dtype.lanes, kCopyBytes, 0};
}

// The row of elements [start, start + length). `unit.count` is what one element counts.
void add_row(Plan& plan, const Pair& pair, const Row& unit, int64_t start, int64_t length) {
  const int64_t dst_offset = start * (pair.teachers[0].dtype.bits / 8 * pair.teachers[0].dtype.lanes);
  const int64_t src_offset = start * (pair.student.dtype.bits / 8 * pair.student.dtype.lanes);
  Row* row = plan.add();
  *row = {unit.src + static_cast<uint64_t>(src_offset), unit.count * length, unit.code, plan.elements};
  Target* targets = reinterpret_cast<Target*>(row + 1);
  uint64_t places = row->src | static_cast<uint64_t>(row->count);
  for (int k = 0; k < plan.averages; ++k) {
    targets[k].dst = reinterpret_cast<uint64_t>(pair.teachers[k].address() + dst_offset);
    targets[k].low = pair.has_low[k] ? reinterpret_cast<uint64_t>(pair.lows[k].address() + 2 * start) : 0;
    places |= targets[k].dst;
  }
  if (row->code == kCopyBytes && (places & 3) == 0) {
    row->code = kCopyWords;
    row->count /= 4;
  }
  plan.count += row->count;
  // Groups of random numbers (philox.h) belong to one row; copies need none.
  if (row->code < kConvert) plan.elements += (row->count + 7) / 8 * 8;
}

// Gives how many there are.
size_t add_rows(Plan& plan, const PairLists& lists, const Pair& pair, const Row& unit) {
  if (pair.teachers[0].dense()) {
    add_row(plan, pair, unit, 0, pair.student.numel());
    return 1;
  }
  const Runs runs(pair.teachers[0], argument(lists, "teacher", pair.index));
  for (const int64_t start : runs.starts) add_row(plan, pair, unit, start, runs.length);
  return runs.starts.size();
}

void check_lists(const PairLists& lists) {
  const size_t count = lists.students.size(), teachers = lists.teachers.size();
  const size_t averages = static_cast<size_t>(lists.averages);
  if (teachers != count * averages && teachers % averages == 0) {
    refuse(Refusal::value, {lists.op, "student"},
           "have as many tensors as teacher (" + std::to_string(teachers / averages) + ")",
           std::to_string(count));
  }
  if (teachers != count * averages) {
    refuse(
        Refusal::value, {lists.op, "teacher"},
        "have " + std::to_string(averages) + " tensors for each of student (" + std::to_string(count) + ")",
        std::to_string(teachers));
  }
  if (!lists.lows.empty() && lists.lows.size() != teachers) {
    refuse(Refusal::value, {lists.op, "low"},
           "have one part, or None, for each of teacher's tensors (" + std::to_string(teachers) + ")",
           std::to_string(lists.lows.size()));
  }
  if (lists.copied < 0 || lists.copied > static_cast<Py_ssize_t>(count)) {
    refuse(Refusal::value, {lists.op, "copied"},
           "be between 0 and the number of pairs, " + std::to_string(count), std::to_string(lists.copied));
  }
  if (lists.names.is_none()) return;
  if (!PyList_Check(lists.names.ptr()) ||
      PyList_GET_SIZE(lists.names.ptr()) != static_cast<Py_ssize_t>(count)) {
    refuse(Refusal::type, {lists.op, "names"}, "be None or a list of " + std::to_string(count) + " names",
           py::str(lists.names));
  }
}

void read_pair(const PairLists& lists, Py_ssize_t index, Pair& pair) {
  const Py_ssize_t count = static_cast<Py_ssize_t>(lists.students.size());
  pair.index = index;
  pair.student =
      TensorView::of(PyTuple_GET_ITEM(lists.students.ptr(), index), argument(lists, "student", index));
  for (int k = 0; k < lists.averages; ++k) {
    const Py_ssize_t at = k * count + index;
    pair.teachers[k] =
        TensorView::of(PyTuple_GET_ITEM(lists.teachers.ptr(), at), argument(lists, "teacher", index, k));
    check_pair(lists, pair, k);
    PyObject* low = lists.lows.empty() ? Py_None : PyTuple_GET_ITEM(lists.lows.ptr(), at);
    pair.has_low[k] = low != Py_None;
    if (!pair.has_low[k]) continue;
    pair.lows[k] = TensorView::of(low, argument(lists, "low", index, k));
    pair.has_low[k] =
        pair.lows[k].numel() > 0;  // an empty one stands for None where a list may hold tensors only
    if (pair.has_low[k]) check_low(lists, pair, k);
  }
}

}  // namespace

Pairs read_pairs(const PairLists& lists) {
  Pairs pairs;
  pairs.plan.averages = lists.averages;
  check_lists(lists);
  const Py_ssize_t count = static_cast<Py_ssize_t>(lists.students.size());
  pairs.plan.words.reserve(static_cast<size_t>(count) * (4 + 2 * static_cast<size_t>(lists.averages)));
  std::vector<Py_ssize_t> owners;  // of each row
  owners.reserve(static_cast<size_t>(count));
  Pair pair;
  for (Py_ssize_t i = 0; i < count; ++i) {
    read_pair(lists, i, pair);
    if (!pairs.first) pairs.first = pair.teachers[0];
    if (!pair.teachers[0].same_device(*pairs.first)) {
      refuse(Refusal::value, argument(lists, "teacher", i),
             "be on the device of teacher[0] (" + pairs.first->attribute("device") + ")",
             pair.teachers[0].attribute("device"));
    }
    if (pair.student.numel() == 0) continue;
    owners.insert(owners.end(),
                  add_rows(pairs.plan, lists, pair, row_of(lists, pair, i < count - lists.copied)), i);
  }
  settle(pairs.plan, lists, owners);
  return pairs;
}

Pairs read_students(const char* op, const py::tuple& students) {
  Pairs pairs;
  for (size_t i = 0; i < students.size(); ++i) {
    const Argument argument{op, "tensors", static_cast<Py_ssize_t>(i)};
    const TensorView view =
        TensorView::of(PyTuple_GET_ITEM(students.ptr(), static_cast<Py_ssize_t>(i)), argument);
    if (!pairs.first) pairs.first = view;
    if (!view.same_device(*pairs.first)) {
      refuse(Refusal::value, argument,
             "be on the device of tensors[0] (" + pairs.first->attribute("device") + ")",
             view.attribute("device"));
    }
    if (!(view.is_float() || view.is_complex()) || view.numel() == 0) continue;
    const auto add = [&](int64_t start, int64_t length) {
      Row* row = pairs.plan.add();
      *row = {reinterpret_cast<uint64_t>(view.address() + start * (view.dtype.bits / 8)),
              length * (view.is_complex() ? 2 : 1),
              row_code(kAverage, view.float_dtype(), view.float_dtype()), 0};
      reinterpret_cast<Target*>(row + 1)[0] = {0, 0};
      pairs.plan.count += row->count;
    };
    if (view.dense()) {
      add(0, view.numel());
      continue;
    }
    const Runs runs(view, argument);
    for (const int64_t start : runs.starts) add(start, runs.length);
  }
  return pairs;
}

namespace {

// One side of a pair of floats; none where it is None.
std::optional<TensorView> read_factor(const Argument& argument, PyObject* tensor, Pairs& pairs) {
  if (tensor == Py_None) return std::nullopt;
  const TensorView view = TensorView::of(tensor, argument);
  if (!view.is_float()) refuse(Refusal::type, argument, kFloatDtypes, view.attribute("dtype"));
  if (!pairs.first) pairs.first = view;
  if (!view.same_device(*pairs.first)) {
    refuse(Refusal::value, argument,
           "be on the device of the first tensor (" + pairs.first->attribute("device") + ")",
           view.attribute("device"));
  }
  return view;
}

void add_factors(const Argument& argument, const TensorView& a, const TensorView& b, Plan& plan) {
  if (!b.same_shape(a)) {
    refuse(Refusal::value, argument, "have the shape of its first " + a.shape_text(), b.shape_text());
  }
  if (a.numel() == 0) return;
  if (!b.same_strides(a)) {
    refuse(Refusal::value, argument, "have the memory format of its first, strides " + a.stride_text(),
           b.stride_text());
  }
  const auto add = [&](int64_t start, int64_t length) {
    Row* row = plan.add();
    *row = {reinterpret_cast<uint64_t>(b.address() + start * (b.dtype.bits / 8)), length,
            row_code(kAverage, a.float_dtype(), b.float_dtype()), 0};
    reinterpret_cast<Target*>(row + 1)[0] = {
        reinterpret_cast<uint64_t>(a.address() + start * (a.dtype.bits / 8)), 0};
    plan.count += length;
  };
  if (a.dense()) return add(0, a.numel());
  const Runs runs(a, {argument.op, "first", argument.index});
  for (const int64_t start : runs.starts) add(start, runs.length);
}

}  // namespace

Pairs read_factors(const char* op, const py::tuple& first, const py::tuple& second) {
  if (first.size() != second.size()) {
    refuse(Refusal::value, {op, "second"},
           "have as many tensors as first (" + std::to_string(first.size()) + ")",
           std::to_string(second.size()));
  }
  Pairs pairs;
  pairs.plan.words.reserve(first.size() * 6);
  for (Py_ssize_t i = 0; i < static_cast<Py_ssize_t>(first.size()); ++i) {
    const Argument argument{op, "second", i};
    const std::optional<TensorView> a = read_factor({op, "first", i}, PyTuple_GET_ITEM(first.ptr(), i),
                                                    pairs),
                                    b = read_factor(argument, PyTuple_GET_ITEM(second.ptr(), i), pairs);
    if (a && b) add_factors(argument, *a, *b, pairs.plan);
  }
  return pairs;
}

}  // namespace mtk
