// Sweeping over the plan's memory from its lowest address up.
#include "overlap.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <mutex>
#include <tuple>
#include <unordered_map>

namespace mtk {
namespace {

enum class Side { student, teacher, low };

struct Interval {
  uint64_t begin, end;  // addresses
  Side side;
  int average;
  int64_t row;
};

struct Settled {
  std::vector<int64_t> twice;  // rows that an earlier one equals
  unsigned checked;            // the demands that its tensors were found to meet
};

// What was found good, by the plan's content; forgotten when there are many.
struct Known {
  std::mutex mutex;
  std::unordered_map<uint64_t, Settled> found;
};
constexpr size_t kMaxKnown = 256;

Known& known() {
  static Known instance;
  return instance;
}

// Four chains, so that the multiplications do not wait for each other.
uint64_t hash_of(const std::vector<int64_t>& words, uint64_t start) {
  constexpr uint64_t kPrime = 0x9e3779b97f4a7c15u;
  uint64_t lanes[4] = {start, words.size(), 2, 3};
  size_t i = 0;
  for (; i + 4 <= words.size(); i += 4) {
    for (size_t k = 0; k < 4; ++k) {
      lanes[k] = (lanes[k] ^ static_cast<uint64_t>(words[i + k])) * kPrime;
      lanes[k] ^= lanes[k] >> 29;
    }
  }
  for (; i < words.size(); ++i) lanes[i % 4] = (lanes[i % 4] ^ static_cast<uint64_t>(words[i])) * kPrime;
  uint64_t hash = 0;
  for (const uint64_t lane : lanes) hash = ((hash ^ lane) * kPrime) ^ (lane >> 31);
  return hash;
}

std::vector<Interval> intervals_of(const Table& table, bool swap) {
  std::vector<Interval> intervals;
  intervals.reserve(static_cast<size_t>(table.n_rows * (1 + table.averages)));
  for (int64_t i = 0; i < table.n_rows; ++i) {
    const Row& row = table.row(i);
    const uint64_t src_bytes = static_cast<uint64_t>(row.count * bytes_per_count(row.code, false));
    const uint64_t dst_bytes = static_cast<uint64_t>(row.count * bytes_per_count(row.code, true));
    intervals.push_back({row.src, row.src + src_bytes, swap ? Side::teacher : Side::student, -1, i});
    for (int k = 0; k < table.averages; ++k) {
      const Target& target = table.targets(i)[k];
      intervals.push_back({target.dst, target.dst + dst_bytes, Side::teacher, k, i});
      if (target.low)
        intervals.push_back({target.low, target.low + 2 * static_cast<uint64_t>(row.count), Side::low, k, i});
    }
  }
  std::sort(intervals.begin(), intervals.end(), [](const Interval& a, const Interval& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.row < b.row;
  });
  return intervals;
}

bool same_rows(const Table& table, int64_t a, int64_t b) {
  const Row &one = table.row(a), &other = table.row(b);
  if (one.src != other.src || one.count != other.count || one.code != other.code) return false;
  return std::equal(table.targets(a), table.targets(a) + table.averages, table.targets(b),
                    [](const Target& x, const Target& y) { return x.dst == y.dst && x.low == y.low; });
}

[[noreturn]] void refuse_sharing(const PairLists& lists, const std::vector<Py_ssize_t>& owners,
                                 const Interval& a, const Interval& b) {
  // The one that is written is named; of two, the later.
  const auto place = [](const Interval& i) { return std::make_tuple(i.row, i.average, i.side); };
  const bool named_a = b.side == Side::student || (a.side != Side::student && place(a) > place(b));
  const Interval &named = named_a ? a : b, &other = named_a ? b : a;
  const Py_ssize_t pair = owners[static_cast<size_t>(named.row)];
  const Py_ssize_t other_pair = owners[static_cast<size_t>(other.row)];
  const char* const name = named.average < 0 ? "student" : named.side == Side::low ? "low" : "teacher";
  const Argument argument{lists.op, name, pair, lists.known_names(),
                          lists.averages > 1 && named.average >= 0 ? named.average : -1};
  const std::string at = "[" + std::to_string(other_pair) + "]";
  std::string is;
  if (other.average < 0) {
    is = pair == other_pair ? "that of its student" : "that of student" + at;
  } else if (pair != other_pair) {
    is = other.side == Side::low ? "that of low" + at : "that of an earlier teacher in another pair";
  } else if (named.average < 0) {
    is = "that of its teacher";
  } else if (named.average != other.average) {
    is = "that of another average";
  } else {
    is = named.side == other.side  ? "that of itself, elements over each other"
         : other.side == Side::low ? "that of its low-order part"
                                   : "that of its teacher";
  }
  refuse(Refusal::value, argument, "have memory of its own", is);
}

std::vector<int64_t> find_twice(const Table& table, const PairLists& lists,
                                const std::vector<Py_ssize_t>& owners) {
  std::vector<int64_t> twice;
  const Interval *written = nullptr, *read = nullptr;  // those that reach farthest so far
  const std::vector<Interval> intervals = intervals_of(table, lists.swap);
  for (const Interval& interval : intervals) {
    const bool writes = interval.side != Side::student;
    const bool tied = written && writes && written->end > interval.begin && written->row != interval.row &&
                      same_rows(table, written->row, interval.row);
    if (tied) {
      twice.push_back(interval.row);
      continue;
    }
    if (written && written->end > interval.begin) refuse_sharing(lists, owners, interval, *written);
    if (writes && read && read->end > interval.begin) refuse_sharing(lists, owners, interval, *read);
    const Interval*& reach = writes ? written : read;
    if (!reach || interval.end > reach->end) reach = &interval;
  }
  std::sort(twice.begin(), twice.end());
  twice.erase(std::unique(twice.begin(), twice.end()), twice.end());
  return twice;
}

// What torch would refuse of its own in-place functions, as bits: tensors that autograd would have to record,
// and inference tensors.
enum Demand : unsigned { kNoGrad = 1, kNoInference = 2 };

struct Modes {
  py::object is_grad_enabled, is_inference_mode_enabled;
};

unsigned demands() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Modes> storage;
  const Modes& modes =
      storage
          .call_once_and_store_result([] {
            const py::module_ torch = py::module_::import("torch");
            return Modes{torch.attr("is_grad_enabled"), torch.attr("is_inference_mode_enabled")};
          })
          .get_stored();
  const bool recording = py::cast<bool>(modes.is_grad_enabled());
  const bool inference = py::cast<bool>(modes.is_inference_mode_enabled());
  return (recording ? kNoGrad : 0u) | (inference ? 0u : kNoInference);
}

// A str made once: to make it anew for each of 500 tensors would double what asking costs.
PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

bool is_true(PyObject* answer) {
  if (!answer) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(answer).ptr() == Py_True;
}

void check_autograd(py::handle tensor, const Argument& argument, unsigned demanded) {
  static PyObject* const requires_grad = interned("requires_grad");
  static PyObject* const is_inference = interned("is_inference");
  if ((demanded & kNoGrad) && is_true(PyObject_GetAttr(tensor.ptr(), requires_grad))) {
    refuse(Refusal::value, argument,
           "not require grad where autograd records (use requires_grad_(False), or torch.no_grad())",
           "requires_grad=True");
  }
  if ((demanded & kNoInference) && is_true(PyObject_CallMethodNoArgs(tensor.ptr(), is_inference))) {
    refuse(Refusal::value, argument, "be no inference tensor outside torch.inference_mode()",
           "is_inference()=True");
  }
}

// Every `stride`-th of those that are written.
void check_all_autograd(const PairLists& lists, unsigned demanded, size_t stride) {
  const size_t count = lists.students.size();
  for (size_t i = 0; i < lists.teachers.size(); i += stride) {
    check_autograd(lists.teachers[i],
                   {lists.op, "teacher", static_cast<Py_ssize_t>(i % count), lists.known_names(),
                    lists.averages > 1 ? static_cast<Py_ssize_t>(i / count) : -1},
                   demanded);
  }
  for (size_t i = 0; lists.swap && i < count; i += stride) {
    check_autograd(lists.students[i], {lists.op, "student", static_cast<Py_ssize_t>(i), lists.known_names()},
                   demanded);
  }
}

void take_out(Plan& plan, const std::vector<int64_t>& twice) {
  if (twice.empty()) return;
  const Table table = plan.table();
  Plan kept;
  kept.averages = plan.averages;
  kept.elements = plan.elements;
  auto next = twice.begin();
  for (int64_t i = 0; i < table.n_rows; ++i) {
    if (next != twice.end() && *next == i) {
      ++next;
      continue;
    }
    kept.words.insert(kept.words.end(), table.words + i * table.width(),
                      table.words + (i + 1) * table.width());
    kept.count += table.row(i).count;
  }
  plan = std::move(kept);
}

}  // namespace

void settle(Plan& plan, const PairLists& lists, const std::vector<Py_ssize_t>& owners) {
  if (plan.words.empty()) return;
  const uint64_t hash = hash_of(plan.words, static_cast<uint64_t>(plan.averages) * 2 + lists.swap);
  const unsigned demanded = demands();
  Known& all = known();
  unsigned checked = 0;
  bool known_table = false;
  std::vector<int64_t> known_twice;
  {
    const std::lock_guard<std::mutex> lock(
        all.mutex);  // never over a call into Python, which may want the GIL
    const auto found = all.found.find(hash);
    if (found != all.found.end()) {
      checked = found->second.checked;
      known_twice = found->second.twice;
      known_table = true;
    }
  }
  // Other tensors may lie where those lay that were checked. To ask each of 500 took 14 us of a call's 70 (2
  // cores of an x86 server); one in each list tells a model that is trained from one that is not.
  const bool all_checked = known_table && (demanded & ~checked) == 0;
  check_all_autograd(lists, demanded, all_checked ? std::max<size_t>(lists.students.size(), 1) : 1);
  std::vector<int64_t> twice = known_table ? std::move(known_twice) : find_twice(plan.table(), lists, owners);
  take_out(plan, twice);
  if (all_checked) return;
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.found.size() >= kMaxKnown) all.found.clear();
  all.found[hash] = {std::move(twice), checked | demanded};
}

}  // namespace mtk
