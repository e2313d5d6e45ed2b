// The plan's table in device memory, found again by its number or its content: the steady state copies
// nothing.
#include <algorithm>
#include <cstring>
#include <memory>

#include "launch.cuh"
#include "plan.h"

namespace mtk {
namespace {

constexpr const char* kOp = "plan";
constexpr int64_t kRowsPerSm =
    16;  // blocks that a multiprocessor gets to choose from; 8 of them are resident
constexpr int64_t kMaxChunk = int64_t{1} << 30;  // elements or bytes: kernels count them as int
constexpr size_t kMaxTables = 64;  // on a device, beside those that graphs hold; about 100 kB each

// A table and what it is found by. Its partials and its ticket serve every launch that walks it, on whatever
// stream: launches that overlap would write the same tensors without order, so the caller keeps them apart
// already. That holds for a captured graph, too, and two tables share nothing.
struct Kept {
  uint64_t id;  // of its plan, or 0
  int averages;
  std::vector<int64_t> words;  // as a plan without a number has them
  void* memory;
  DeviceTable table;
  bool pinned;  // a captured graph reads it

  // Tables of different pointers differ in their first bytes, so that only the right one is compared to its
  // end.
  bool is_of(const Plan& plan) const {
    if (plan.id || id) return plan.id == id;
    return averages == plan.averages && words.size() == plan.words.size() &&
           std::memcmp(words.data(), plan.words.data(), words.size() * sizeof(int64_t)) == 0;
  }
};

struct Tables {
  std::mutex mutex;
  std::vector<std::unique_ptr<Kept>> list;  // the most recently used first
};

Tables& tables_of(int device) {
  static std::mutex mutex;
  static std::map<int, Tables> all;
  const std::lock_guard<std::mutex> lock(mutex);
  return all[device];
}

// Frees the older half at once: the first cudaFree waits for the device, so that no kernel reads what goes,
// and a caller whose pointers change at every call should not wait at every call.
void evict(Tables& tables) {
  const RelaxedCapture relaxed(kOp);
  size_t kept = 0;
  const auto is_old = [&kept](const std::unique_ptr<Kept>& table) {
    return !table->pinned && ++kept > kMaxTables / 2;
  };
  const auto old = std::stable_partition(tables.list.begin(), tables.list.end(),
                                         [&](const std::unique_ptr<Kept>& table) { return !is_old(table); });
  for (auto table = old; table != tables.list.end(); ++table) check(cudaFree((*table)->memory), kOp);
  tables.list.erase(old, tables.list.end());
}

bool any_low(const Table& rows) {
  for (int64_t i = 0; i < rows.n_rows; ++i) {
    const Target* const targets = rows.targets(i);
    if (std::any_of(targets, targets + rows.averages, [](const Target& target) { return target.low != 0; }))
      return true;
  }
  return false;
}

// One stretch of memory: the chunked rows, then the partials, then the ticket.
std::unique_ptr<Kept> upload(const Plan& plan, int device) {
  Plan chunks =
      plan.chunks(std::max(kRowsPerSm * device_limits(device, kOp).sms, plan.count / kMaxChunk + 1));
  const int64_t n_rows = chunks.table().n_rows, row_words = n_rows * chunks.table().width();
  const int64_t partials = n_rows * plan.averages;
  chunks.words.resize(static_cast<size_t>(row_words + partials + 1));
  void* const memory = new_device_memory(chunks.words.data(), chunks.words.size() * sizeof(int64_t), kOp);
  int64_t* const words = static_cast<int64_t*>(memory);
  const DeviceTable table{{words, n_rows, plan.averages},
                          reinterpret_cast<double*>(words + row_words),
                          reinterpret_cast<unsigned*>(words + row_words + partials),
                          any_low(plan.table())};
  return std::make_unique<Kept>(
      Kept{plan.id, plan.averages, plan.id ? std::vector<int64_t>() : plan.words, memory, table, false});
}

}  // namespace

DeviceTable device_table(const Plan& plan, int device, void* stream) {
  if (plan.words.empty()) return {{nullptr, 0, plan.averages}, nullptr, nullptr, false};
  const bool capturing = is_capturing(stream, kOp);
  Tables& tables = tables_of(device);
  const std::lock_guard<std::mutex> lock(tables.mutex);
  auto& list = tables.list;
  auto found = std::find_if(list.begin(), list.end(), [&](const auto& table) { return table->is_of(plan); });
  if (found == list.end()) {
    const auto pinned =
        std::count_if(list.begin(), list.end(), [](const auto& table) { return table->pinned; });
    if (!capturing && list.size() - static_cast<size_t>(pinned) >= kMaxTables) evict(tables);
    list.push_back(upload(plan, device));
    found = list.end() - 1;
  }
  std::rotate(list.begin(), found, found + 1);
  list.front()->pinned |= capturing;
  return list.front()->table;
}

}  // namespace mtk
