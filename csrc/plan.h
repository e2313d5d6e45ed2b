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
  kCopyWords = 33,  // the same in words of 4 bytes, where both pointers and the length allow it
};

struct Row {
  uint64_t dst;  // device addresses
  uint64_t src;
  int64_t count;  // elements; bytes or words for copies
  int64_t code;
};
static_assert(sizeof(Row) == 32, "Triton reads a row as four int64");

inline int64_t row_code(Action action, Dtype dst, Dtype src) {
  return action + kDtypes * static_cast<int64_t>(dst) + static_cast<int64_t>(src);
}

Row float_row(Action action, void* dst, Dtype dst_dtype, const void* src, Dtype src_dtype, int64_t count);
Row copy_row(void* dst, const void* src, int64_t bytes);

struct Plan {
  std::vector<Row> rows;  // one per tensor
  int64_t count = 0;      // sum of the rows' counts

  void add(const Row& row) {
    rows.push_back(row);
    count += row.count;
  }

  // The rows cut into chunks of equal length, about target_rows of them beside those of tensors that are
  // shorter.
  std::vector<Row> chunks(int64_t target_rows) const;
};

#if defined(MTK_CUDA)
// The chunked rows in device memory. Uploaded when they differ from what was uploaded before, and only then.
struct DeviceRows {
  const Row* rows;
  int64_t n_rows;
};
DeviceRows device_rows(const Plan& plan, int device, void* stream);
#endif

}  // namespace mtk
