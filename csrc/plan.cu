// The plan's table in device memory, found again by its content: the steady state compares and copies
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
    16;                            // blocks that a multiprocessor gets to choose from; 8 of them are resident
constexpr size_t kMaxTables = 64;  // on a device, beside those that graphs hold; about 100 kB each

struct Table {
  std::vector<Row> rows;  // as the plan has them
  DeviceRows device_rows;
  bool pinned;  // a captured graph reads it
};

struct Tables {
  std::mutex mutex;
  std::vector<std::unique_ptr<Table>> list;  // the most recently used first
};

Tables& tables_of(int device) {
  static std::mutex mutex;
  static std::map<int, Tables> all;
  const std::lock_guard<std::mutex> lock(mutex);
  return all[device];
}

// Tables of different pointers differ in their first bytes, so that only the right one is compared to its
// end.
bool same_rows(const std::vector<Row>& a, const std::vector<Row>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Row)) == 0;
}

// Frees the older half at once: the first cudaFree waits for the device, so that no kernel reads what goes,
// and a caller whose pointers change at every call should not wait at every call.
void evict(Tables& tables) {
  const RelaxedCapture relaxed(kOp);
  size_t kept = 0;
  const auto is_old = [&kept](const std::unique_ptr<Table>& table) {
    return !table->pinned && ++kept > kMaxTables / 2;
  };
  const auto old = std::stable_partition(tables.list.begin(), tables.list.end(),
                                         [&](const std::unique_ptr<Table>& table) { return !is_old(table); });
  for (auto table = old; table != tables.list.end(); ++table) {
    check(cudaFree(const_cast<Row*>((*table)->device_rows.rows)), kOp);
  }
  tables.list.erase(old, tables.list.end());
}

std::unique_ptr<Table> upload(const Plan& plan, int device) {
  const std::vector<Row> chunks = plan.chunks(kRowsPerSm * device_limits(device, kOp).sms);
  auto table =
      std::make_unique<Table>(Table{plan.rows, {nullptr, static_cast<int64_t>(chunks.size())}, false});
  table->device_rows.rows =
      static_cast<const Row*>(new_device_memory(chunks.data(), chunks.size() * sizeof(Row), kOp));
  return table;
}

}  // namespace

DeviceRows device_rows(const Plan& plan, int device, void* stream) {
  if (plan.rows.empty()) return {nullptr, 0};
  const bool capturing = is_capturing(stream, kOp);
  Tables& tables = tables_of(device);
  const std::lock_guard<std::mutex> lock(tables.mutex);
  auto& list = tables.list;
  auto found = std::find_if(list.begin(), list.end(),
                            [&](const auto& table) { return same_rows(table->rows, plan.rows); });
  if (found == list.end()) {
    const auto pinned =
        std::count_if(list.begin(), list.end(), [](const auto& table) { return table->pinned; });
    if (!capturing && list.size() - static_cast<size_t>(pinned) >= kMaxTables) evict(tables);
    list.push_back(upload(plan, device));
    found = list.end() - 1;
  }
  std::rotate(list.begin(), found, found + 1);
  list.front()->pinned |= capturing;
  return list.front()->device_rows;
}

}  // namespace mtk
