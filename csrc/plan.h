// The table that every multi-tensor op walks: one row per tensor (or per chunk of one), the same on CPU, CUDA
// and Triton.
#pragma once
#include <cstdint>
#include <vector>

#include "dtype.h"

namespace mtk {

// What is done to a row. The first two are offsets: code = action + kDtypes * dst dtype + src dtype.
enum Action : int64_t {
  kAverage = 0,     // dst <- decay * dst + (1 - decay) * src
  kConvert = 16,    // dst <- src, between two floating dtypes
  kCopyBytes = 32,  // dst <- src as it is, count in bytes
  kCopyWords = 33,  // the same in words of 4 bytes, where all pointers and the length allow it
};

// A row is a Row and as many Targets as there are averages, one after the other in memory.
struct Row {
  uint64_t src;   // device address
  int64_t count;  // elements; bytes or words for copies
  int64_t code;
  int64_t first;  // number of its first element among all that are averaged: where its random numbers start
};
struct Target {
  uint64_t dst;
  uint64_t low;  // of dst's low-order part (low_part.h), or 0
};
static_assert(sizeof(Row) == 32 && sizeof(Target) == 16,
              "Triton reads a row as 4 int64 and 2 for each average");

constexpr int kMaxAverages = 8;

inline int64_t row_code(Action action, Dtype dst, Dtype src) {
  return action + kDtypes * static_cast<int64_t>(dst) + static_cast<int64_t>(src);
}

MTK_INLINE int64_t bytes_per_count(int64_t code, bool dst) {
  if (code == kCopyBytes) return 1;
  if (code == kCopyWords) return 4;
  const int64_t pair = code % (kDtypes * kDtypes);
  return size_of(static_cast<Dtype>(dst ? pair / kDtypes : pair % kDtypes));
}

// Rows in one stretch of memory, the host's or a device's.
struct Table {
  const int64_t* words;
  int64_t n_rows;
  int averages;

  MTK_INLINE int64_t width() const { return 4 + 2 * averages; }
  MTK_INLINE const Row& row(int64_t i) const { return *reinterpret_cast<const Row*>(words + i * width()); }
  MTK_INLINE const Target* targets(int64_t i) const {
    return reinterpret_cast<const Target*>(words + i * width() + 4);
  }
};

struct Plan {
  int averages = 1;
  std::vector<int64_t> words;  // one row per tensor
  int64_t count = 0;           // sum of the rows' counts
  int64_t elements = 0;        // of averages alone, each row's rounded up to 8: the next row's `first`
  uint64_t id = 0;  // of a plan that is kept: no two have the same, so that its table need not be compared

  Table table() const {
    return {words.data(), static_cast<int64_t>(words.size()) / (4 + 2 * averages), averages};
  }

  // Room for a row, which is to be filled.
  Row* add();

  // The rows cut into chunks of equal length, about target_rows of them beside those of tensors that are
  // shorter.
  Plan chunks(int64_t target_rows) const;
};

#if defined(MTK_CUDA)
// The chunked rows in device memory; all null for an empty plan. Uploaded when they differ from what was
// uploaded before, and only then.
struct DeviceTable {
  Table table;
  double* partials;  // [n_rows, averages]: for sums over all rows, as ema_update's drift
  unsigned* ticket;  // blocks that are done; 0 between launches
  bool has_low;      // whether any target has a low-order part
};
DeviceTable device_table(const Plan& plan, int device, void* stream);
#endif

}  // namespace mtk
