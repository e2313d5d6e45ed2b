// The multi-tensor ops as Python sees them: ema_update, its bound form EmaPlan, swap_, nonfinite_, and the
// tables that Triton's kernels walk.
#include <atomic>
#include <memory>
#include <vector>

#include "bindings.h"
#include "ema_arguments.h"
#include "nonfinite.h"
#include "pairs.h"
#include "swap.h"

namespace mtk {
namespace {

py::tuple low_tuple(const py::object& low) {
  if (low.is_none()) return py::tuple();
  if (!PySequence_Check(low.ptr()) || is_tensor(low.ptr()))
    refuse(Refusal::type, {"ema_update", "low"}, "be a list of tensors or None", Py_TYPE(low.ptr())->tp_name);
  return py::tuple(low);
}

py::tuple low_of(const py::object& options) {
  const py::object low = options.is_none() ? py::none() : option(options, "low");
  return low_tuple(low);
}

py::bytes rows_of(const Plan& plan, int64_t target_rows) {
  const Plan chunks = plan.chunks(target_rows);
  return py::bytes(reinterpret_cast<const char*>(chunks.words.data()), chunks.words.size() * sizeof(int64_t));
}

PairLists ema_lists(const py::sequence& teacher, const py::sequence& student, const py::object& decay,
                    Py_ssize_t copied, const py::object& names, const py::object& options) {
  return {"ema_update", py::tuple(teacher), py::tuple(student), low_of(options), copied, names,
          false,        averages_of(decay)};
}

void run(const PairLists& lists, const Pairs& pairs, const py::object& decay, const py::object& options) {
  EmaUpdate args{};
  args.plan = &pairs.plan;
  read_ema_arguments(decay, options, *pairs.first, args);
  launch({lists.op, "teacher", 0, lists.known_names()}, *pairs.first, args, ema_update_cpu, ema_update_cuda);
}

void ema_update(const py::sequence& teacher, const py::sequence& student, const py::object& decay,
                Py_ssize_t copied, const py::object& names, const py::object& options) {
  const PairLists lists = ema_lists(teacher, student, decay, copied, names, options);
  const Pairs pairs = read_pairs(lists);
  if (pairs.first) run(lists, pairs, decay, options);
}

// The checked, chunked table as bytes, rows of 4 + 2 * averages int64: what Triton's kernel walks.
py::bytes ema_rows(const py::sequence& teacher, const py::sequence& student, const py::object& decay,
                   Py_ssize_t copied, const py::object& names, const py::object& options,
                   int64_t target_rows) {
  const Pairs pairs = read_pairs(ema_lists(teacher, student, decay, copied, names, options));
  if (!pairs.first) return py::bytes();
  EmaUpdate args{};
  read_ema_arguments(decay, options, *pairs.first, args);
  return rows_of(pairs.plan, target_rows);
}

// ---- the bound form

// What a tensor was when the plan was made: its place, dtype, shape and strides.
class Fingerprints {
 public:
  void add(const TensorView& view) {
    words_.push_back(reinterpret_cast<int64_t>(view.address()));
    words_.push_back(kind(view));
    words_.insert(words_.end(), view.shape, view.shape + view.ndim);
    words_.insert(words_.end(), view.strides, view.strides + view.ndim);
  }

  // Whether the tensor is as the next one was; `at` moves on.
  bool same(const TensorView& view, size_t& at) const {
    if (at + 2 > words_.size()) return false;
    const int64_t* const word = words_.data() + at;
    const size_t dims = static_cast<size_t>(view.ndim);
    at += 2 + 2 * dims;
    return word[0] == reinterpret_cast<int64_t>(view.address()) && word[1] == kind(view) &&
           std::equal(view.shape, view.shape + dims, word + 2) &&
           std::equal(view.strides, view.strides + dims, word + 2 + dims);
  }

 private:
  static int64_t kind(const TensorView& view) {
    return view.ndim | view.dtype.code << 8 | view.dtype.bits << 16 |
           static_cast<int64_t>(view.device.device_type) << 32 |
           static_cast<int64_t>(view.device.device_id) << 40;
  }
  std::vector<int64_t> words_;
};

// Lists of tensors with their table, made once. Each update looks whether a tensor has moved, and only then
// makes the table again.
class EmaPlan {
 public:
  EmaPlan(const py::sequence& teacher, const py::sequence& student, int averages, Py_ssize_t copied,
          const py::object& names, const py::object& low)
      : lists_{"ema_update", py::tuple(teacher), py::tuple(student), low_tuple(low), copied, names, false,
               averages} {
    if (averages < 1 || averages > kMaxAverages) {
      refuse(Refusal::value, {"ema_update", "averages"}, "be between 1 and " + std::to_string(kMaxAverages),
             std::to_string(averages));
    }
    build();
  }

  void update(const py::object& decay, const py::object& options) {
    refresh(decay);
    const std::shared_ptr<const Pairs> pairs = pairs_;  // another thread may replace it while the kernel runs
    if (pairs->first) run(lists_, *pairs, decay, options);
  }

  // Checks what an update would, for a kernel elsewhere. Gives the number of the table, which changes with
  // it.
  uint64_t check(const py::object& decay, const py::object& options) {
    refresh(decay);
    EmaUpdate args{};
    if (pairs_->first) read_ema_arguments(decay, options, *pairs_->first, args);
    return pairs_->plan.id;
  }

  py::bytes rows(int64_t target_rows) const { return rows_of(pairs_->plan, target_rows); }
  const PairLists& lists() const { return lists_; }

 private:
  template <class Body>
  bool each(Body body) const {
    for (const py::tuple* list : {&lists_.teachers, &lists_.students, &lists_.lows}) {
      for (const py::handle tensor : *list) {
        if (!tensor.is_none() && !body(tensor.ptr())) return false;
      }
    }
    return true;
  }

  void build() {
    static std::atomic<uint64_t> ids{0};
    auto pairs = std::make_shared<Pairs>(read_pairs(lists_));
    pairs->plan.id = ++ids;
    std::vector<HeldTensor> held;
    Fingerprints fingerprints;
    each([&](PyObject* tensor) {
      held.emplace_back(tensor);
      fingerprints.add(TensorView::of(tensor, {"ema_update", "teacher"}));
      return true;
    });
    pairs_ = std::move(pairs);
    held_.swap(held);
    fingerprints_ = std::move(fingerprints);
  }

  void refresh(const py::object& decay) {
    if (averages_of(decay) != lists_.averages) {
      refuse(Refusal::value, {"ema_update", "decay"},
             "be one for each of " + std::to_string(lists_.averages) + " averages",
             std::to_string(averages_of(decay)));
    }
    size_t at = 0;
    const bool same = each([this, &at](PyObject* tensor) {
      TensorView view;
      return view.read(tensor) && fingerprints_.same(view, at);
    });
    if (!same) build();
  }

  PairLists lists_;
  std::shared_ptr<const Pairs> pairs_;
  std::vector<HeldTensor> held_;
  Fingerprints fingerprints_;
};

// ---- swap_ and nonfinite_

PairLists swap_lists(const py::sequence& teacher, const py::sequence& student, const py::object& names) {
  return {"swap_", py::tuple(teacher), py::tuple(student), py::tuple(), 0, names, true};
}

void swap_(const py::sequence& teacher, const py::sequence& student, const py::object& names) {
  const PairLists lists = swap_lists(teacher, student, names);
  const Pairs pairs = read_pairs(lists);
  if (!pairs.first) return;
  Swap args{};
  args.plan = &pairs.plan;
  launch({lists.op, "teacher", 0, lists.known_names()}, *pairs.first, args, swap_cpu, swap_cuda);
}

py::bytes swap_rows(const py::sequence& teacher, const py::sequence& student, const py::object& names,
                    int64_t target_rows) {
  return rows_of(read_pairs(swap_lists(teacher, student, names)).plan, target_rows);
}

float* check_found(const py::object& found, const TensorView& tensors) {
  const Numbers flag{kDLFloat, 32, "float32", 1, "tensors"};
  return reinterpret_cast<float*>(read_numbers(found, {"nonfinite_", "found"}, flag, tensors).address());
}

void nonfinite_(const py::object& found, const py::sequence& tensors) {
  const py::tuple kept(tensors);
  const Pairs students = read_students("nonfinite_", kept);
  if (!students.first) return;
  Nonfinite args{};
  args.plan = &students.plan;
  args.found = check_found(found, *students.first);
  launch({"nonfinite_", "tensors", 0}, *students.first, args, nonfinite_cpu, nonfinite_cuda);
}

py::bytes nonfinite_rows(const py::object& found, const py::sequence& tensors, int64_t target_rows) {
  const Pairs students = read_students("nonfinite_", py::tuple(tensors));
  if (!students.first) return py::bytes();
  check_found(found, *students.first);
  return rows_of(students.plan, target_rows);
}

}  // namespace

void bind_ema(py::module_& m) {
  using namespace py::literals;
  m.def("ema_update", &ema_update, "teacher"_a, "student"_a, "decay"_a, "copied"_a = 0,
        "names"_a = py::none(), "options"_a = py::none());
  m.def("ema_rows", &ema_rows, "teacher"_a, "student"_a, "decay"_a, "copied"_a, "names"_a, "options"_a,
        "target_rows"_a);
  m.def("swap_", &swap_, "teacher"_a, "student"_a, "names"_a = py::none());
  m.def("swap_rows", &swap_rows, "teacher"_a, "student"_a, "names"_a, "target_rows"_a);
  m.def("nonfinite_", &nonfinite_, "found"_a, "tensors"_a);
  m.def("nonfinite_rows", &nonfinite_rows, "found"_a, "tensors"_a, "target_rows"_a);
  m.def("decay_at", &decay_at, "schedule"_a, "step"_a);
  py::class_<EmaPlan>(m, "EmaPlan",
                      "Lists of tensors whose table is made once; each update looks whether one moved.")
      .def(py::init<const py::sequence&, const py::sequence&, int, Py_ssize_t, const py::object&,
                    const py::object&>(),
           "teacher"_a, "student"_a, "averages"_a = 1, "copied"_a = 0, "names"_a = py::none(),
           "low"_a = py::none())
      .def("update", &EmaPlan::update, "decay"_a, "options"_a = py::none())
      .def("check", &EmaPlan::check, "decay"_a, "options"_a = py::none())
      .def("rows", &EmaPlan::rows, "target_rows"_a)
      .def_property_readonly("teacher", [](const EmaPlan& plan) { return plan.lists().teachers; })
      .def_property_readonly("student", [](const EmaPlan& plan) { return plan.lists().students; })
      .def_property_readonly("low", [](const EmaPlan& plan) { return plan.lists().lows; })
      .def_property_readonly("copied", [](const EmaPlan& plan) { return plan.lists().copied; })
      .def_property_readonly("names", [](const EmaPlan& plan) { return plan.lists().names; });
}

}  // namespace mtk
